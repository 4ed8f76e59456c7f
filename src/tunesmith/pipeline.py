"""The stages in order. A stage whose inputs and part of the recipe are unchanged is not run again.

A run directory holds one trained model: `run` goes on in the newest run of the recipe's name whose data and training
are the same, and starts a new directory otherwise. Inside it, every stage has a key: a hash of its part of the recipe,
the records it reads and the files it opens. Killed anywhere, the same command finds the same keys and goes on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeGuard

from tunesmith import keys, stage_process, summary
from tunesmith.artifacts import (
    Artifact,
    Checkpoint,
    Dataset,
    Release,
    Report,
    Scores,
    Serving,
    Speeds,
    Verdict,
    Weights,
)
from tunesmith.errors import GateFailed, Interrupted, TunesmithError
from tunesmith.gate.names import refuse_unknown
from tunesmith.lineage import command_line, lineage
from tunesmith.planning import benchmarks, gather_facts, refuse_misnamed
from tunesmith.process import Early
from tunesmith.recipe import frozen_weights
from tunesmith.recipe.dump import dump_recipe, dump_yaml
from tunesmith.recipe.environment import redact
from tunesmith.recipe.load import Loaded
from tunesmith.recipe.resolve import Decision, resolve
from tunesmith.recipe.schema import Recipe
from tunesmith.store import files
from tunesmith.store import run_dir as runs
from tunesmith.store.run_dir import RunDir
from tunesmith.track import console

# ── The stages ───────────────────────────────────────────────────────────────────────────────────────────────────────


def data(work: Work) -> Artifact:
    from tunesmith.data import stage

    return stage.run(work.recipe, work.run_dir)


def train(work: Work) -> Artifact:
    if work.recipe.tuned is not None:
        from tunesmith.train import elsewhere

        return elsewhere.run(work.recipe, work.run_dir)
    num_processes = work.recipe.train.num_processes
    assert isinstance(num_processes, int), "the recipe is resolved"
    return stage_process.run("train", work.run_dir, Checkpoint, num_processes=num_processes, early=work.early)


def merge(work: Work) -> Artifact:
    return stage_process.run("merge", work.run_dir, Weights)


def evaluate(work: Work) -> Artifact:
    from tunesmith.evaluate import stage

    scores = stage.run(work.recipe, work.run_dir, work.serving())
    _mirror(work, stage.summary(scores))
    return scores


def bench(work: Work) -> Artifact:
    from tunesmith.bench import stage

    return stage.run(work.recipe, work.run_dir, work.serving())


def gate(work: Work) -> Artifact:
    from tunesmith.gate import stage

    return stage.run(work.recipe, work.run_dir)


def report(work: Work) -> Artifact:
    from tunesmith.report import stage

    return stage.run(work.recipe, work.run_dir)


def publish(work: Work) -> Artifact:
    from tunesmith.publish import stage

    return stage.run(work.recipe, work.run_dir)


def _questions_can_be_read(recipe: Recipe) -> None:
    from tunesmith.evaluate import stage

    stage.refuse_unreadable(recipe)


def _load_can_be_read(recipe: Recipe) -> None:
    from tunesmith.bench import stage

    stage.refuse_unreadable(recipe)


@dataclass(frozen=True)
class Stage:
    """One row of the table below: what a stage makes, what it reads, when it is wanted, and what is tried first.

    `tried` raises what can be known to go wrong later, while nothing has run yet.
    """

    run: Callable[[Work], Artifact]
    makes: type[Artifact]
    reads: tuple[type[Artifact], ...] = ()
    wanted: Callable[[Recipe], bool] = lambda recipe: True
    tried: Callable[[Recipe], None] = lambda recipe: None

    @property
    def name(self) -> str:
        return self.run.__name__


STAGES = (
    Stage(data, Dataset, wanted=lambda recipe: recipe.tuned is None),
    Stage(train, Checkpoint, (Dataset,)),
    Stage(merge, Weights, (Checkpoint, Dataset)),
    # Serving has no record: `evaluate` and `bench` start a server when they need one (`Work.serving`).
    Stage(evaluate, Scores, (Weights,), lambda recipe: recipe.evaluate is not None, _questions_can_be_read),
    Stage(bench, Speeds, (Weights,), lambda recipe: recipe.bench is not None, _load_can_be_read),
    Stage(gate, Verdict, (Dataset, Checkpoint, Weights, Scores, Speeds), lambda recipe: bool(recipe.gate)),
    Stage(report, Report, (Dataset, Checkpoint, Weights, Scores, Speeds, Verdict)),
    Stage(publish, Release, (Weights, Scores, Speeds, Verdict), lambda recipe: recipe.publish is not None),
)

# ── One run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Work:
    """What stages are called with, and the servers that live between them."""

    recipe: Recipe
    run_dir: RunDir
    inputs: keys.Inputs
    state: dict[str, Any]
    early: Early
    _stack: contextlib.ExitStack
    _serving: Any = None
    _serving_since: float = 0.0

    def serving(self) -> Serving:
        """Return the servers, which are stopped when the run ends or the last stage that needs them is done."""
        if self._serving is None:
            from tunesmith.serve.stage import Servers

            self._serving = self._stack.enter_context(Servers(self.recipe, self.run_dir))
            self._serving_since = time.monotonic()
            self.note("serve", state="running", started=_now(), error=None)
        serving: Serving = self._serving
        return serving

    def stop_serving(self) -> None:
        """Stop the servers when there are any."""
        if self._serving is None:
            return
        self._stack.close()
        self._serving = None
        self.note("serve", state="done", seconds=round(time.monotonic() - self._serving_since, 3), ended=_now())

    def note(self, stage: str, **facts: Any) -> None:
        """Write a stage's state into run.json."""
        self.state["stages"].setdefault(stage, {}).update(facts)
        self.run_dir.write_run(self.state)


def run(loaded: Loaded, *, new: bool = False, until: str | None = None, early: Early | None = None) -> RunDir:
    """Run a recipe from where its newest run stands, up to and including the stage `until`.

    Args:
        early: may hold the process of the training already; it is ended as soon as there is nothing to train.

    Raises:
        GateFailed: everything ran, and a rule of the gate does not hold.
        Interrupted: a signal stopped it; the same call goes on.
        TunesmithError: whatever stopped a stage; finished stages stay finished.
    """
    stage_process.raise_on_signals()
    refuse_unknown(loaded)
    model_path, facts = gather_facts(loaded.recipe)
    recipe, decisions = resolve(loaded.recipe, facts)
    with loaded.located():  # a name misspelt shows now, not after hours of work
        refuse_misnamed(recipe, facts)
        benchmarks(recipe)
    with early or Early() as early:
        if not _trains(recipe, until):
            early.end()
        inputs = keys.gather(recipe, model_path)
        run_dir, is_new = _directory(recipe, inputs, new)
        if _readable(run_dir, Checkpoint) is not None:
            early.end()
        with run_dir.locked(), contextlib.ExitStack() as stack:
            state = _begin(run_dir, loaded, recipe, decisions, inputs)
            console.say(f"run  {run_dir.path}  ({'new' if is_new else 'continued'})")
            work = Work(recipe, run_dir, inputs, state, early, stack)
            if until != "data" and state["stages"].get("train", {}).get("state") != "done":
                for note in frozen_weights.notes(recipe, facts):
                    console.say(f"  note: {note}")
            with _outcome_noted(work):
                stages = _up_to(until, recipe)
                for stage in stages:
                    if state["stages"].get(stage.name, {}).get("state") != "done":
                        stage.tried(recipe)
                for stage in stages:
                    _run_or_skip(stage, work)
                work.stop_serving()
                if _reaches_gate(until):
                    _raise_if_gate_failed(run_dir, recipe)
    return run_dir


def _up_to(until: str | None, recipe: Recipe) -> list[Stage]:
    """Return the stages that are wanted, up to and including one."""
    last = len(STAGES) if until is None else [stage.name for stage in STAGES].index(until) + 1
    return [stage for stage in STAGES[:last] if stage.wanted(recipe)]


def _trains(recipe: Recipe, until: str | None) -> bool:
    """Return whether a run may come to a training of its own, in one process."""
    return recipe.tuned is None and recipe.train.num_processes == 1 and until != "data"


def _run_or_skip(stage: Stage, work: Work) -> None:
    """Run one stage unless its record is there under the same key."""
    key = keys.stage_key(stage.name, work.recipe, work.inputs, [work.run_dir.find(kind) for kind in stage.reads])
    known = work.state["stages"].get(stage.name, {})
    record = _readable(work.run_dir, stage.makes)
    if known.get("state") == "done" and known.get("key") == key and _is_whole(record):
        console.say(summary.line(stage.name, record, unchanged=True))
        return
    if stage.name == "publish" and _gate_forbids(work):
        work.note(stage.name, state="skipped", key=None, reason="the gate failed")
        console.say(f"  {stage.name:<9} skipped: the gate failed")
        return
    work.run_dir.artifact(stage.name).unlink(missing_ok=True)
    if stage.name not in ("evaluate", "bench"):
        work.stop_serving()
    work.note(stage.name, state="running", key=key, started=_now(), error=None)
    started = time.monotonic()
    record = stage.run(work)
    work.run_dir.save(record)
    seconds = round(time.monotonic() - started, 3)
    work.note(stage.name, state="done", seconds=seconds, ended=_now())
    console.say(summary.line(stage.name, record, seconds=seconds))


def _is_whole(record: Artifact | None) -> TypeGuard[Artifact]:
    """Return whether a record is there and leaves nothing to do: unanswered items are asked again."""
    return record is not None and not (isinstance(record, Scores) and record.num_unanswered > 0)


def _gate_forbids(work: Work) -> bool:
    verdict = work.run_dir.find(Verdict)
    publish = work.recipe.publish
    return verdict is not None and not verdict.passed and publish is not None and not publish.even_if_gate_failed


def _reaches_gate(until: str | None) -> bool:
    names = [stage.name for stage in STAGES]
    return until is None or names.index(until) >= names.index("gate")


def _raise_if_gate_failed(run_dir: RunDir, recipe: Recipe) -> None:
    verdict = run_dir.find(Verdict) if recipe.gate else None
    if verdict is not None and not verdict.passed:
        failed = [str(rule["rule"]) for rule in verdict.rules if not rule["passed"]]
        do = f"the evidence is in {run_dir.report_page}"
        raise GateFailed(f"the gate failed: {'; '.join(failed)}", where=str(run_dir.path), do=do)


def _mirror(work: Work, numbers: dict[str, float]) -> None:
    """Give a stage's final numbers to the trackers."""
    from tunesmith.track.tracker import open_tracker

    checkpoint = work.run_dir.load(Checkpoint)
    with open_tracker(work.recipe, work.run_dir, resumed_at_step=checkpoint.num_steps) as tracker:
        tracker.summary(numbers)


def _readable(run_dir: RunDir, kind: type[Artifact]) -> Artifact | None:
    try:
        return run_dir.find(kind)
    except TunesmithError:
        return None


# ── The directory and its run.json ───────────────────────────────────────────────────────────────────────────────────


def _directory(recipe: Recipe, inputs: keys.Inputs, new: bool) -> tuple[RunDir, bool]:
    """Return the run to go on with, or a new one."""
    identity = keys.identity(recipe, inputs)
    for candidate in reversed([] if new else runs.list_runs(recipe.output_dir, recipe.name)):
        if candidate.read_run().get("identity") == identity:
            runs.point_latest_at(candidate.path)
            return candidate, False
    return runs.create(recipe.output_dir, recipe.name), True


def _begin(
    run_dir: RunDir, loaded: Loaded, recipe: Recipe, decisions: list[Decision], inputs: keys.Inputs
) -> dict[str, Any]:
    """Write the snapshots and return the state that run.json holds from now on."""
    known = run_dir.read_run()
    files.write_text(run_dir.recipe, _as_written(loaded))
    files.write_text(run_dir.resolved_recipe, dump_recipe(recipe))
    state: dict[str, Any] = {
        "schema_version": 1,
        "name": recipe.name,
        "id": run_dir.path.name,
        "identity": keys.identity(recipe, inputs),
        "created": known.get("created", _now()),
        "command": [redact(word) for word in command_line()],
        "state": "running",
        "stages": known.get("stages", {}),
        "decisions": [{"key": d.key, "value": d.value, "reason": d.reason} for d in decisions],
        "lineage": lineage() | {"model": inputs.model, "files": inputs.files, "recipe": str(loaded.path)},
    }
    run_dir.write_run(state)
    return state


def _as_written(loaded: Loaded) -> str:
    """Return the recipe's own text, or the merged document when other files or settings went into it."""
    text = loaded.path.read_text(encoding="utf-8")
    sources = {mark.rsplit(":", 1)[0] for mark in loaded.marks.values()}
    if sources <= {str(loaded.path)}:
        return text
    others = sorted(sources - {str(loaded.path)})
    return f"# {loaded.path} with {', '.join(others)}\n{dump_yaml(loaded.document)}"


@contextlib.contextmanager
def _outcome_noted(work: Work) -> Iterator[None]:
    """Write into run.json how the run ended, whatever way it ends."""
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
        work.state["state"] = "interrupted" if interrupted else "failed"
        if isinstance(error, GateFailed):
            work.state["state"] = "done"
        for facts in work.state["stages"].values():
            if facts.get("state") == "running":
                facts |= {"state": work.state["state"], "error": redact(str(error)) or type(error).__name__}
        work.run_dir.write_run(work.state)
        if isinstance(error, KeyboardInterrupt):
            do = "the same command goes on where this run stopped"
            raise Interrupted("stopped", where=str(work.run_dir.path), do=do) from None
        raise
    work.state["state"] = "done" if all(_is_done(work, stage) for stage in STAGES) else "partial"
    work.run_dir.write_run(work.state)


def _is_done(work: Work, stage: Stage) -> bool:
    facts = work.state["stages"].get(stage.name, {})
    return not stage.wanted(work.recipe) or facts.get("state") in ("done", "skipped")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def run_in_process(name: str, recipe: Recipe, run_dir: RunDir) -> Artifact:
    """Run one stage of an existing run here and now, whatever its key says."""
    if name in stage_process.STAGES:
        return stage_process.run_here(name, recipe, run_dir)
    stage = next(stage for stage in STAGES if stage.name == name)
    with contextlib.ExitStack() as stack:
        early = stack.enter_context(Early())
        return stage.run(Work(recipe, run_dir, keys.Inputs({}, {}), {"stages": {}}, early, stack))
