"""Every number of a run by the path that rules and comparisons use, derived from the records themselves.

Nothing here knows a task or a metric by name: what a stage puts into its record can be named at once. A number stands
at SECTION and the keys that lead to it (`merge.proof.top1_agreement`, `bench.c16.ttft_p95_ms`); the tuned value of a
metric has the metric's own path, and the other fields of its record stand below it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.artifacts import Artifact, Checkpoint, Dataset, Scores, Speeds, Weights
from tunesmith.store.run_dir import RunDir

SECTIONS: dict[str, type[Artifact]] = {
    "data": Dataset,
    "train": Checkpoint,
    "merge": Weights,
    "evaluate": Scores,
    "bench": Speeds,
}


def numbers(run_dir: RunDir) -> dict[str, float]:
    """Return every number of a run by its path, in the order of the stages."""
    found: dict[str, float] = {}
    for section, kind in SECTIONS.items():
        record = run_dir.find(kind)
        if isinstance(record, Scores):
            found |= _of_scores(record)
        elif isinstance(record, Speeds):
            found |= _flat(section, dict(record.levels)) | _flat(section, {"seconds": record.seconds})
        elif record is not None:
            found |= _flat(section, dataclasses.asdict(record))
    return found


def metric_records(scores: Scores | None) -> dict[str, dict[str, Any]]:
    """Return the record of every metric by its path `evaluate.TASK.METRIC`."""
    return {
        f"evaluate.{task}.{metric}": dict(record)
        for task, metrics in (scores.tasks if scores else {}).items()
        for metric, record in metrics.items()
    }


def origin(path: str, run_dir: RunDir, scores: Scores | None) -> str:
    """Return the file in the run directory that a number was counted from."""
    section = path.split(".")[0]
    for task, stored in (scores.items if scores else {}).items():
        if path.startswith(f"evaluate.{task}."):
            return stored
    speeds = run_dir.find(Speeds) if section == "bench" else None
    if speeds and speeds.requests:
        return speeds.requests
    kind = SECTIONS.get(section)
    return run_dir.relative(run_dir.artifact(run_dir.stage_of(kind.kind))) if kind else ""


def is_number(value: Any) -> bool:
    """Whether a value counts as a number: truth values do not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of_scores(scores: Scores) -> dict[str, float]:
    found: dict[str, float] = {}
    for path, record in metric_records(scores).items():
        found |= _flat(path, record.get("tuned")) | _flat(path, record)
    for task, by_model in scores.failures.items():
        found |= _flat(f"evaluate.{task}.failures", by_model)
    return found | _flat("evaluate", {"num_unanswered": scores.num_unanswered, "seconds": scores.seconds})


def _flat(path: str, value: Any) -> dict[str, float]:
    return dict(_leaves(path, value))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{path}.{key}", item)
    elif is_number(value):
        yield path, value
