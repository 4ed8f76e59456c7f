"""A run directory: every file name of a run is a property here, and nowhere else.

outputs/runs/20260131-142233-NAME/
  recipe.yaml            the recipe as it was written (after `extends` and `--set`), environment references kept
  recipe.resolved.yaml   without any `auto`, every default written out
  run.json               state, timings and keys of the stages; lineage; what was decided and why
  metrics.jsonl          every number training and evaluation logged
  trackers.json          under which names the trackers that mirror it know this run
  STAGE/artifact.json    the record a stage left, written last: it is there when the stage is done
  STAGE/…                what the record points to
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.artifacts import KINDS, Artifact
from tunesmith.errors import StageError, UsageError
from tunesmith.store import files

Record = TypeVar("Record", bound=Artifact)

STAGES = ("data", "train", "merge", "serve", "evaluate", "bench", "gate", "report", "publish")
_STAGE_OF = {
    "dataset": "data",
    "checkpoint": "train",
    "weights": "merge",
    "scores": "evaluate",
    "speeds": "bench",
    "verdict": "gate",
    "report": "report",
    "release": "publish",
}


class RunDir:
    """The directory of one run. Making the object touches nothing."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def resolved_recipe(self) -> Path:
        return self.path / "recipe.resolved.yaml"

    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def trackers(self) -> Path:
        """Under which names the trackers know this run."""
        return self.path / "trackers.json"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def checkpoints(self) -> Path:
        """Training checkpoints, `step-000100` each."""
        return self.stage("train") / "checkpoints"

    @property
    def trained(self) -> Path:
        """What training leaves: an adapter or a whole model."""
        return self.stage("train") / "final"

    @property
    def merged(self) -> Path:
        """The whole model after folding."""
        return self.stage("merge") / "model"

    @property
    def train_tokens(self) -> Path:
        return self.stage("data") / "train"

    @property
    def validation_tokens(self) -> Path:
        return self.stage("data") / "validation"

    @property
    def quarantine(self) -> Path:
        """Rows that could not be read, with file, line and reason."""
        return self.stage("data") / "quarantine.jsonl"

    @property
    def requests(self) -> Path:
        """Per-request timings of the load test."""
        return self.stage("bench") / "requests.jsonl"

    @property
    def partial_speeds(self) -> Path:
        """What a load test had measured when a signal stopped it."""
        return self.stage("bench") / "partial.json"

    @property
    def report_page(self) -> Path:
        return self.stage("report") / "report.html"

    @property
    def report_document(self) -> Path:
        """What the page shows, for machines."""
        return self.stage("report") / "report.json"

    @property
    def report_summary(self) -> Path:
        """What the page shows, in short, for comments and job summaries."""
        return self.stage("report") / "summary.md"

    @property
    def unfinished_uploads(self) -> Path:
        """Uploads to object stores that a command left unfinished and the next one goes on with."""
        return self.stage("publish") / "uploads.json"

    def server_log(self, which: str) -> Path:
        return self.stage("serve") / f"{which}.log"

    def items(self, task: str) -> Path:
        """Per-item results of an evaluation task."""
        return self.stage("evaluate") / f"{task}.items.jsonl"

    def harness(self, which: str, name: str) -> Path:
        """What lm-evaluation-harness works with and leaves for one model: a task's directory, or a file beside them."""
        return self.stage("evaluate") / "lm_eval" / which / re.sub(r"[^\w.-]", "_", name)

    def stage(self, name: str) -> Path:
        """The directory of one stage."""
        assert name in STAGES, name
        return self.path / name

    def artifact(self, stage: str) -> Path:
        return self.stage(stage) / "artifact.json"

    def relative(self, path: Path) -> str:
        """Return a path below the run directory as artifacts store it."""
        return path.relative_to(self.path).as_posix()

    def absolute(self, stored: str) -> Path:
        """Return the path an artifact stores; absolute ones (a base model elsewhere) stay as they are."""
        return self.path / stored

    def save(self, record: Artifact) -> None:
        """Write a stage's record. This is the moment its stage is done."""
        files.write_json(self.artifact(_STAGE_OF[record.kind]), record.to_json())

    def load(self, kind: type[Record]) -> Record:
        """Read the record of a kind.

        Raises:
            StageError: the stage has not run, or its record cannot be read.
        """
        stage = _STAGE_OF[kind.kind]
        path = self.artifact(stage)
        try:
            return kind.from_json(json.loads(path.read_text()))
        except FileNotFoundError:
            raise StageError(
                f"stage {stage} has not run yet", where=str(self.path), do="run the whole recipe"
            ) from None
        except (ValueError, TypeError) as error:
            do = f"remove {path} and run again"
            raise StageError(f"the record of stage {stage} cannot be read: {error}", where=str(path), do=do) from None

    def records(self) -> dict[str, Artifact]:
        """Return every record that is there, by kind, in the order of the stages."""
        found = {kind: self.find(KINDS[kind]) for kind in _STAGE_OF}
        return {kind: record for kind, record in found.items() if record is not None}

    def readable_records(self) -> tuple[dict[str, Artifact], list[StageError]]:
        """Like `records`, with the errors of those that cannot be read beside the others."""
        found: dict[str, Artifact] = {}
        unreadable = []
        for kind in _STAGE_OF:
            try:
                record = self.find(KINDS[kind])
            except StageError as error:
                unreadable.append(error)
            else:
                found |= {kind: record} if record is not None else {}
        return found, unreadable

    @staticmethod
    def stage_of(kind: str) -> str:
        """Return the stage that leaves records of a kind."""
        return _STAGE_OF[kind]

    def find(self, kind: type[Record]) -> Record | None:
        """Read the record of a kind, or return None when its stage has not run."""
        return self.load(kind) if self.artifact(_STAGE_OF[kind.kind]).exists() else None

    def read_run(self) -> dict[str, Any]:
        """Return run.json, or an empty mapping when there is none or it is broken.

        What it says of stages and lineage is a mapping of mappings, whatever somebody made of the file.
        """
        with contextlib.suppress(OSError, ValueError):
            document = json.loads(self.run_json.read_text())
            if isinstance(document, dict):
                stages, told = (document.get(key, {}) for key in ("stages", "lineage"))
                known = stages.items() if isinstance(stages, dict) else ()
                document["stages"] = {name: facts for name, facts in known if isinstance(facts, dict)}
                document["lineage"] = told if isinstance(told, dict) else {}
                return document
        return {}

    def write_run(self, document: dict[str, Any]) -> None:
        files.write_json(self.run_json, document)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process.

        Raises:
            UsageError: another process works in it now.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self.lock.open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                do = "wait for it, stop it, or start another run with --new"
                raise UsageError("another process is working in this run", where=str(self.path), do=do) from None
            yield

    def outcome(self) -> str:
        """Return what run.json says has become of the run; `killed` where it still says `running`, and nobody is."""
        told = str(self.read_run().get("state", "unknown"))
        if told != "running" or not self.lock.exists():
            return told
        with self.lock.open() as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return told
        return "killed"


def runs_root(output_dir: str | Path) -> Path:
    return Path(output_dir) / "runs"


def cache_root(output_dir: str | Path) -> Path:
    return Path(output_dir) / "cache"


def create(output_dir: str | Path, name: str) -> RunDir:
    """Make the directory of a new run and point `latest` at it."""
    root = runs_root(output_dir)
    root.mkdir(parents=True, exist_ok=True)
    while True:
        path = root / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
        try:
            path.mkdir()
            break
        except FileExistsError:
            time.sleep(0.2)
    point_latest_at(path)
    return RunDir(path)


def point_latest_at(path: Path) -> None:
    """Make `latest` beside a run a link to it, by one rename."""
    link = path.parent / f".latest-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    link.replace(path.parent / "latest")


def list_runs(output_dir: str | Path, name: str | None = None) -> list[RunDir]:
    """Return the runs, oldest first; of one name when given."""
    root = runs_root(output_dir)
    found = [RunDir(p) for p in sorted(root.glob("*-*-*")) if p.is_dir() and not p.is_symlink()]
    return [run for run in found if name is None or run.path.name.split("-", 2)[2] == name]


def find_run(word: str, output_dir: str | Path) -> RunDir:
    """Return the run that a person means: a path, `latest`, a run directory's name, or a recipe's name (its newest).

    Raises:
        UsageError: none fits.
    """
    if (Path(word) / "run.json").exists():
        return RunDir(Path(word).resolve() if Path(word).is_symlink() else Path(word))
    inside = runs_root(output_dir) / word
    if (inside / "run.json").exists():
        return RunDir(inside.resolve())
    named = list_runs(output_dir, word)
    if named:
        return named[-1]
    known = ", ".join(run.path.name for run in list_runs(output_dir)[-5:]) or "none"
    raise UsageError(f"there is no run {word!r} in {runs_root(output_dir)}", do=f"newest runs: {known}")
