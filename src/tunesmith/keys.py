"""What decides whether a stage has to run again: hashes of what it depends on, and of nothing else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.artifacts import Artifact
from tunesmith.errors import DataError
from tunesmith.recipe.effects import WITHOUT_EFFECT
from tunesmith.recipe.environment import expand
from tunesmith.recipe.schema import Bench, BfclTask, Evaluate, Recipe, Source
from tunesmith.recipe.walk import plain
from tunesmith.store.files import HashCache, fingerprint
from tunesmith.store.run_dir import cache_root

# Raised when a stage's code changes what it makes from the same inputs.
VERSIONS = {"data": 1, "train": 1, "merge": 2, "evaluate": 4, "bench": 2, "gate": 2, "report": 2, "publish": 2}


@dataclass(frozen=True)
class Inputs:
    """Hashes of everything outside the run directory that stages read."""

    model: dict[str, Any]  # name_or_path, revision, path, fingerprint of weights, fingerprint of the rest
    files: dict[str, dict[str, str]]  # stage -> file -> sha256


def gather(recipe: Recipe, model_path: Path) -> Inputs:
    """Hash the base model and every local file the recipe names. Hashes are remembered between commands.

    Raises:
        DataError: a file is missing.
    """
    from tunesmith.rows.sources import is_hub_id, source_files

    cache = HashCache(cache_root(recipe.output_dir) / "hashes.json")

    def hashes(sources: list[Source]) -> dict[str, str]:
        """Hub data sets are pinned by the recipe's own `revision`, and by the record of the data stage."""
        local = [source for source in sources if not is_hub_id(source)]
        return {str(file): cache.sha256(file) for source in local for file in source_files(source)}

    bench = recipe.bench
    template = recipe.data.chat_template
    templates = {template: cache.sha256(Path(template))} if Path(template).is_file() else {}
    return Inputs(
        model=_model(recipe, model_path, cache),
        files={
            "train": _tuned(recipe, cache),
            "data": hashes([*recipe.data.train, *recipe.data.validation]) | templates,
            "evaluate": hashes([Source(path) for path in evaluated_files(recipe.evaluate)])
            | _task_files(recipe, cache)
            | _leaderboard_files(recipe.evaluate.bfcl if recipe.evaluate else None, cache),
            "bench": hashes([Source(path) for path in bench.prompts]) | _hash_of_trace(bench, cache) if bench else {},
        },
    )


def _task_files(recipe: Recipe, cache: HashCache) -> dict[str, str]:
    """Return what tasks of lm-evaluation-harness are made of: its version, own files, and the data they name."""
    harness = recipe.evaluate.lm_eval if recipe.evaluate else None
    if harness is None:
        return {}
    from tunesmith.evaluate.lm_eval.catalogue import catalogue, task_files

    names = catalogue(harness, cache_root(recipe.output_dir) / "lm_eval")
    data = {file for task in names.choose(harness) for file in task.data_files if Path(file).is_file()}
    found = {file: cache.sha256(Path(file)) for file in sorted(data)} | {"lm_eval": names.version}
    return found | (task_files(Path(expand(harness.include_path)).expanduser()) if harness.include_path else {})


def _leaderboard_files(bfcl: BfclTask | None, cache: HashCache) -> dict[str, str]:
    """Return the hashes of BFCL's files; what has yet to come from the Hub is pinned by `evaluate.bfcl.data` alone."""
    if bfcl is None:
        return {}
    from tunesmith.evaluate.bfcl.location import on_this_machine

    directory = on_this_machine(expand(bfcl.data) if bfcl.data else None)
    found = sorted(directory.rglob("BFCL_v*.json")) if directory else []
    return {str(file): cache.sha256(file) for file in found if "unused_datasets" not in file.parts}


def _hash_of_trace(bench: Bench, cache: HashCache) -> dict[str, str]:
    if bench.trace is None:
        return {}
    if not Path(bench.trace).is_file():
        raise DataError("the trace of `bench.trace` is missing", where=bench.trace)
    return {bench.trace: cache.sha256(Path(bench.trace))}


def evaluated_files(evaluate: Evaluate | None) -> list[str]:
    """Return the files and globs whose rows are asked, as the recipe writes them."""
    if evaluate is None:
        return []
    tasks = [task for task in (evaluate.text, evaluate.function_calls, evaluate.judge) if task]
    files = [path for task in tasks for path in task.files]
    return files + [path for of_set in (evaluate.text.sets.values() if evaluate.text else ()) for path in of_set]


def _model(recipe: Recipe, path: Path, cache: HashCache) -> dict[str, Any]:
    weights: dict[str, str] = {}
    rest: dict[str, str] = {}
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt", ".py"):
            (weights if file.suffix == ".safetensors" else rest)[file.name] = cache.sha256(file)
    return {
        "name_or_path": recipe.model.name_or_path,
        "revision": recipe.model.revision,
        "path": str(path),
        "weights": fingerprint(weights),
        "rest": fingerprint(rest),
    }


def _tuned(recipe: Recipe, cache: HashCache) -> dict[str, str]:
    """Return the hashes of what was trained elsewhere."""
    from tunesmith.train.elsewhere import find

    if recipe.tuned is None:
        return {}
    directory = find(recipe.tuned, recipe.output_dir)
    told = (".safetensors", ".json", ".jinja", ".model")
    return {str(file): cache.sha256(file) for file in sorted(directory.iterdir()) if file.suffix in told}


def _part(recipe: Recipe, section: str) -> Any:
    document = plain(getattr(recipe, section))
    ignored = WITHOUT_EFFECT.get(section, ())
    return {k: v for k, v in document.items() if k not in ignored} if isinstance(document, dict) else document


def _without_pace(evaluate: Evaluate | None) -> Any:
    """Return the section without what decides how fast it goes, and not what comes out."""
    return plain(dataclasses.replace(evaluate, concurrency=1, request_timeout_seconds=1.0)) if evaluate else None


def _serve_part(recipe: Recipe) -> dict[str, Any]:
    part: dict[str, Any] = {"engine": recipe.serve.engine, "max_model_len": recipe.serve.max_model_len}
    return part | ({"unmerged_adapter": True} if recipe.serve.unmerged_adapter else {})


def _parts(stage: str, recipe: Recipe) -> dict[str, Any]:
    """Return the part of the recipe that a stage's result depends on."""
    name, objective = recipe.name, recipe.train.objective
    on_model = {"serve": _serve_part(recipe), "dtype": recipe.model.dtype}
    table: dict[str, Any] = {
        "data": {"data": _part(recipe, "data"), "objective": objective},
        "train": {
            "model": _part(recipe, "model"),
            "train": _part(recipe, "train"),
            "packing": recipe.data.packing,
        }
        | ({"tuned": recipe.tuned} if recipe.tuned is not None else {}),
        "merge": _part(recipe, "merge"),
        "evaluate": [on_model, _without_pace(recipe.evaluate)],
        "bench": [on_model, _part(recipe, "bench")],
        "gate": list(recipe.gate),
        "report": plain(recipe),
        "publish": {"publish": _part(recipe, "publish"), "name": name},
    }
    return {"stage": stage, "version": VERSIONS[stage], "seed": recipe.seed, "part": table[stage]}


def stage_key(stage: str, recipe: Recipe, inputs: Inputs, records: list[Artifact | None]) -> str:
    """Return the hash of everything a stage's result depends on."""
    document = _parts(stage, recipe)
    document["records"] = [dataclasses.asdict(record) if record else None for record in records]
    document["files"] = inputs.files.get(stage, {})
    if stage in ("data", "train", "merge", "evaluate", "bench"):
        document["model"] = (
            [inputs.model["rest"]] if stage == "data" else [inputs.model["rest"], inputs.model["weights"]]
        )
    return fingerprint(document)


def identity(recipe: Recipe, inputs: Inputs) -> str:
    """Return the hash of what is trained on what: runs with the same identity share a directory."""
    return fingerprint([stage_key("data", recipe, inputs, []), stage_key("train", recipe, inputs, [])])
