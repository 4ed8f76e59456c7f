"""Evaluate what is there: any endpoint, run or model directory, by a recipe's `evaluate` section, without training.

Nothing is registered anywhere. The numbers get a run directory of their own, which `compare`, `report` and the gate
read like any other. The same command goes on in the same directory and asks only what is missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith import stage_process
from tunesmith.artifacts import Endpoint, Which
from tunesmith.chosen_model import Choice, choose_model
from tunesmith.errors import Interrupted, UsageError
from tunesmith.evaluate import stage
from tunesmith.evaluate.external import External, root_url
from tunesmith.evaluate.interview import Model, shared_answers, software
from tunesmith.evaluate.lm_eval.measure import Harness
from tunesmith.evaluate.lm_eval.work_order import Examinee
from tunesmith.lineage import command_line, lineage
from tunesmith.recipe.dump import dump_recipe
from tunesmith.recipe.environment import redact
from tunesmith.recipe.load import Loaded, load, read_yaml
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.walk import plain
from tunesmith.serve.engine import engine_named
from tunesmith.serve.process import ServerProcess, start
from tunesmith.store import files
from tunesmith.store import run_dir as runs
from tunesmith.store.run_dir import RunDir
from tunesmith.track.console import say, warn

_NOTHING_TRAINED = "(nothing is trained)"


@dataclass(frozen=True)
class Subject:
    """What is evaluated: with `url` a model behind an endpoint, without it a run's model or a model directory.

    `model` is the name at the endpoint (empty for the only one there), or the run, directory or `RUN:base`.
    """

    model: str = ""
    url: str = ""
    api_key: str = ""  # `${env:NAME}`

    @property
    def name(self) -> str:
        """What people call it."""
        return self.model or root_url(self.url)

    @property
    def sentence_name(self) -> str:
        """What it is called after `the`."""
        return f"model {self.model}" if self.model else f"model at {root_url(self.url)}"


def evaluate(
    tasks: str, settings: list[str], tuned: Subject, base: Subject | None, output_dir: str, *, new: bool = False
) -> RunDir:
    """Ask one model, or two on the same items, and leave `Scores` and a page in a run directory.

    Args:
        tasks: a recipe, a YAML file with only an `evaluate` section, or a run (its recipe).
        settings: `key=value` changes to it.
        tuned: what is evaluated.
        base: what it is compared with.
        output_dir: where runs are.
        new: ask everything again, in a new directory, although the same was evaluated before.

    Raises:
        TunesmithError: the recipe, a file, a model or an endpoint is not as it has to be.
        Interrupted: a signal stopped it; the same call goes on.
    """
    stage_process.raise_on_signals()
    loaded = _tasks(tasks, settings, tuned, base, output_dir)
    recipe = loaded.recipe
    subjects: dict[Which, Subject] = {"base": base, "tuned": tuned} if base else {"tuned": tuned}
    # Before the directory of this evaluation is there, which may have the same name.
    choices = {which: _chosen(subject, recipe) for which, subject in subjects.items() if not subject.url}
    with contextlib.ExitStack() as stack:
        identity = files.fingerprint([plain(recipe), _told(tuned), _told(base) if base else None])
        run_dir, is_new = _directory(recipe, identity, new)
        stack.enter_context(run_dir.locked())
        state = _begin(run_dir, loaded, identity)
        state["lineage"]["evaluated"] = {which: _told(subject) for which, subject in subjects.items()}
        run_dir.write_run(state)
        say(f"evaluation  {run_dir.path}  ({'new' if is_new else 'continued; --new asks everything again'})")
        models: dict[Which, Model] = {}
        for which, subject in subjects.items():
            if which in choices:
                models[which] = _served(subject, choices[which], which, run_dir, stack)
            else:
                models[which] = _external(subject, which, recipe, run_dir)
        with _outcome_noted(run_dir, state):
            with loaded.located():
                harness = _harness(recipe, run_dir, models, choices)
            scores = stage.measure(recipe, run_dir, models, harness=harness)
            run_dir.save(scores)
        _report(recipe, run_dir)
    return run_dir


# ── What is asked ────────────────────────────────────────────────────────────────────────────────────────────────────


def _tasks(word: str, settings: list[str], tuned: Subject, base: Subject | None, output_dir: str) -> Loaded:
    """Return the recipe whose `evaluate` section is asked; what a file of tasks only leaves open is filled in."""
    path = Path(word)
    if not path.is_file():
        path = runs.find_run(word, output_dir).resolved_recipe
    document, _ = read_yaml(path)
    if "evaluate" not in document and "extends" not in document:
        do = "add one, such as `evaluate: {text: {files: [rows.jsonl]}}`"
        raise UsageError("there is nothing to ask: no `evaluate` section", where=str(path), do=do)
    open_ = {
        "name": f"name={_slug(tuned.name)}",
        "model": f"model={_quoted(base.name if base else tuned.name)}",
        "data": f"data.train={_quoted(_NOTHING_TRAINED)}",
    }
    filled = [] if "extends" in document else [setting for key, setting in open_.items() if key not in document]
    compares = [f"evaluate.base_model={'true' if base else 'false'}"]
    section = document.get("evaluate")
    if base is None and isinstance(section, dict) and section.get("judge"):
        warn("`evaluate.judge` is left out: there is nothing to compare with; --beside names a second model")
        compares.append("evaluate.judge=null")
    return load(path, [*filled, *settings, *compares, f"output_dir={_quoted(output_dir)}", "gate=[]"])


def _slug(name: str) -> str:
    kept = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in Path(name).name)
    return kept.strip("-")[:60] or "evaluation"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# ── Who is asked ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _told(subject: Subject) -> dict[str, str]:
    """Return what tells a subject apart; never its key."""
    return {"url": root_url(subject.url), "model": subject.model}


def _external(subject: Subject, which: Which, recipe: Recipe, run_dir: RunDir) -> Model:
    assert recipe.evaluate is not None
    limit = recipe.evaluate.request_timeout_seconds
    there = External(subject.url, subject.model, subject.api_key, which=which, timeout_seconds=limit)
    return Model(subject.sentence_name, there.endpoint, there.identity, _answers(run_dir, which), _told(subject))


def _chosen(subject: Subject, recipe: Recipe) -> Choice:
    """Return how a run's tuned model, its base (`RUN:base`) or a model directory is served.

    Raises:
        UsageError: it is none of them.
        StageError: the run has not made the model yet.
    """
    word, _, part = (subject.model, "", "") if Path(subject.model).exists() else subject.model.partition(":")
    if part not in ("", "base", "tuned"):
        raise UsageError(f"a run has a base and a tuned model, no {part!r}", do=f"write {word}:base or {word}:tuned")
    return choose_model(word, recipe.output_dir, "base" if part == "base" else "tuned", "evaluate")


def _served(subject: Subject, choice: Choice, which: Which, run_dir: RunDir, stack: contextlib.ExitStack) -> Model:
    model = choice.model
    cache = files.HashCache(runs.cache_root(run_dir.path.parent.parent) / "hashes.json")
    identity = {
        "files": {file.name: cache.sha256(file) for file in sorted(model.path.iterdir()) if file.is_file()},
        "engine": choice.engine,
        "software": software(choice.engine),
        "dtype": model.dtype,
        "max_model_len": model.max_model_len,
        "chat_template": model.chat_template,
    }
    server = _Server(replace(choice, log=run_dir.server_log(which)), which)
    stack.callback(server.stop)
    told = {"model": subject.model, "path": str(model.path), "engine": choice.engine}
    shared = shared_answers(run_dir.path.parent.parent, identity)
    return Model(subject.sentence_name, server.endpoint, identity, _answers(run_dir, which), told, shared)


def _harness(
    recipe: Recipe, run_dir: RunDir, models: Mapping[Which, Model], choices: Mapping[Which, Choice]
) -> Harness | None:
    """Return lm-evaluation-harness on these models, of which only some have their files here."""
    if recipe.evaluate is None or recipe.evaluate.lm_eval is None:
        return None
    found = {which: Examinee(model.endpoint, model.identity) for which, model in models.items()}
    for which, choice in choices.items():
        served = choice.model
        found[which] = Examinee(
            models[which].endpoint,
            models[which].identity,
            served.path,
            choice.engine,
            served.dtype,
            served.chat_template,
            served.max_model_len,
            served.trust_remote_code,
        )
    return Harness(recipe, run_dir, found)


def _answers(run_dir: RunDir, which: Which) -> Path:
    return run_dir.stage("evaluate") / f"answers.{which}.jsonl"


class _Server:
    """A server of ours, started when it is first asked for, and again when it died."""

    def __init__(self, choice: Choice, which: Which) -> None:
        self._choice, self._which = choice, which
        self._running: ServerProcess | None = None

    def endpoint(self) -> Endpoint:
        choice = self._choice
        if self._running is None or not self._running.is_running():
            self.stop()
            engine, limit = engine_named(choice.engine), choice.timeout_seconds
            self._running = start(engine, choice.model, log=choice.log, port=0, timeout_seconds=limit)
        return Endpoint(self._running.url, choice.model.name, choice.engine, self._which, str(choice.log))

    def stop(self) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None


# ── The directory ────────────────────────────────────────────────────────────────────────────────────────────────────


def _directory(recipe: Recipe, identity: str, new: bool) -> tuple[RunDir, bool]:
    """Return the evaluation to go on with, or a new one, and whether it is new."""
    for candidate in reversed([] if new else runs.list_runs(recipe.output_dir, recipe.name)):
        if candidate.read_run().get("identity") == identity:
            runs.point_latest_at(candidate.path)
            return candidate, False
    return runs.create(recipe.output_dir, recipe.name), True


def _begin(run_dir: RunDir, loaded: Loaded, identity: str) -> dict[str, Any]:
    files.write_text(run_dir.recipe, loaded.path.read_text(encoding="utf-8"))
    files.write_text(run_dir.resolved_recipe, dump_recipe(loaded.recipe))
    known = run_dir.read_run()
    state: dict[str, Any] = {
        "schema_version": 1,
        "name": loaded.recipe.name,
        "id": run_dir.path.name,
        "identity": identity,
        "created": known.get("created", _now()),
        "command": [redact(word) for word in command_line()],
        "state": "running",
        "stages": {"evaluate": {"state": "running", "started": _now()}},
        "decisions": [],
        "lineage": lineage() | {"recipe": str(loaded.path)},
    }
    run_dir.write_run(state)
    return state


@contextlib.contextmanager
def _outcome_noted(run_dir: RunDir, state: dict[str, Any]) -> Iterator[None]:
    """Write into run.json how the evaluation ended, whatever way it ends."""
    facts = state["stages"]["evaluate"]
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
        state["state"] = facts["state"] = "interrupted" if interrupted else "failed"
        facts["error"] = redact(str(error)) or type(error).__name__
        run_dir.write_run(state)
        if isinstance(error, KeyboardInterrupt):
            do = "the same command goes on where this one stopped; every answer so far is kept"
            raise Interrupted("stopped", where=str(run_dir.path), do=do) from None
        raise
    state["state"] = facts["state"] = "done"
    facts["ended"] = _now()
    run_dir.write_run(state)


def _report(recipe: Recipe, run_dir: RunDir) -> None:
    from tunesmith.report import stage as report

    run_dir.save(report.run(recipe, run_dir))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
