"""What was trained elsewhere takes the place of a training: an adapter in PEFT's format, or a whole model.

Knows no torch: only names, settings and headers are read.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from tunesmith.artifacts import Checkpoint
from tunesmith.errors import ModelError
from tunesmith.model.companions import TEMPLATE, copy_companions
from tunesmith.model.headers import model_facts, read_header
from tunesmith.model.locate import locate
from tunesmith.recipe.environment import expand
from tunesmith.recipe.schema import Model, Recipe
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir, find_run
from tunesmith.tokens.fingerprint import PROBES_FILE, render_probes
from tunesmith.tokens.templates import template_for
from tunesmith.tokens.tokenizer import load_tokenizer

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def find(tuned: str, output_dir: str) -> Path:
    """Return the directory that `tuned` names.

    Raises:
        ModelError: there is none, or it holds neither an adapter nor a model.
        UsageError: there is no such run.
    """
    name = expand(tuned)
    if name.startswith("run:"):
        run_dir = find_run(name.removeprefix("run:"), output_dir)
        if not run_dir.trained.is_dir():
            do = f"finish its training first: tunesmith run {run_dir.recipe} --until train"
            raise ModelError("this run has trained nothing yet", where=str(run_dir.path), do=do)
        return run_dir.trained
    path = Path(name).expanduser()
    if not path.is_dir():
        try:
            path = locate(Model(name), output_dir)
        except ModelError as error:
            raise ModelError(error.what, where=error.where, do="check `tuned`") from None
    if (path / _CONFIG).is_file() and not (path / _WEIGHTS).is_file():
        pickled = (
            " (adapter_model.bin is a pickle, which is never read)" if (path / "adapter_model.bin").exists() else ""
        )
        do = "save it with safe_serialization=True"
        raise ModelError(f"the adapter has no {_WEIGHTS}{pickled}", where=str(path), do=do)
    if not (path / _CONFIG).is_file() and not (path / "config.json").is_file():
        what = f"this directory holds neither {_CONFIG} nor config.json"
        raise ModelError(what, where=str(path), do="give the directory that save_pretrained wrote, or `run:NAME`")
    return path.absolute()


def run(recipe: Recipe, run_dir: RunDir) -> Checkpoint:
    """Make `train/final` of what was trained elsewhere, and the record that a training would leave.

    An adapter is copied, with the tokenizer and template that lie beside it or else the base model's. The files of a
    whole model are linked.

    Raises:
        ModelError: `tuned` or the base model is missing or broken.
        DataError: tokenizer or template cannot be used.
    """
    assert recipe.tuned is not None, "the recipe trains by itself"
    started = time.monotonic()
    found = find(recipe.tuned, recipe.output_dir)
    base = locate(recipe.model, recipe.output_dir)
    is_adapter = (found / _CONFIG).is_file()
    method = _method(found) if is_adapter else "full"
    with files.writing_directory(run_dir.trained) as directory:
        copy_companions((found, base), directory)
        if is_adapter:
            moved = [found / _CONFIG, found / _WEIGHTS]
        else:
            moved = [path for path in found.iterdir() if path.suffix == ".safetensors" or _describes(path)]
        for file in moved:
            _bring(file, directory / file.name)
        tokenizer = load_tokenizer(directory)
        template = template_for(tokenizer, expand(recipe.data.chat_template))
        files.write_text(directory / TEMPLATE, template.text)
        probes = render_probes(tokenizer, template)
        files.write_json(directory / PROBES_FILE, probes.to_json())
    num_parameters = model_facts(base).num_parameters
    return Checkpoint(
        path=run_dir.relative(run_dir.trained),
        method=method,
        base_model=recipe.model.name_or_path,
        num_steps=0,
        first_loss=None,
        final_loss=None,
        validation_loss=None,
        num_trainable_parameters=_num_numbers(found / _WEIGHTS) if is_adapter else num_parameters,
        num_parameters=num_parameters,
        trained_tokens_per_second=0.0,
        tokens_per_second=0.0,
        peak_memory_bytes=0,
        seconds=round(time.monotonic() - started, 3),
        template_fingerprint=probes.fingerprint,
    )


def _describes(path: Path) -> bool:
    return path.name in ("config.json", "model.safetensors.index.json", "quantised.json")


def _bring(file: Path, target: Path) -> None:
    """Link a file into the run, or copy it where links do not reach. What is small is always copied."""
    if file.suffix == ".safetensors":
        try:
            os.link(file.resolve(), target)
        except OSError:
            shutil.copyfile(file, target)
    else:
        shutil.copyfile(file, target)


def _method(adapter: Path) -> str:
    config = _config(adapter)
    kind = str(config.get("peft_type", "")).upper()
    if kind != "LORA":
        do = "only LoRA, rsLoRA and DoRA can be merged"
        raise ModelError(f"the adapter is of type {kind or '(none)'}", where=str(adapter / _CONFIG), do=do)
    method = "dora" if config.get("use_dora") else "lora"
    return f"q{method}" if (adapter / "quantised.json").is_file() else method


def _config(adapter: Path) -> dict[str, Any]:
    try:
        document = json.loads((adapter / _CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"the file cannot be read: {error}", where=str(adapter / _CONFIG)) from None
    return document if isinstance(document, dict) else {}


def _num_numbers(weights: Path) -> int:
    return sum(info.num_elements for info in read_header(weights).values())
