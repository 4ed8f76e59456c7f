"""What the harness left, read as it is: its results, and its samples item by item."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from tunesmith.errors import EvaluateError
from tunesmith.evaluate.lm_eval.work_order import Job


@dataclass(frozen=True)
class MetricValue:
    """One number of the harness: its own value and standard error."""

    name: str
    filter: str
    value: float
    stderr: float | None
    higher_is_better: bool


@dataclass(frozen=True)
class Sample:
    """One item of a task, over all of the task's filters.

    Attributes:
        scores: (metric, filter) -> the item's value, where it is a number.
    """

    doc_id: int
    doc_hash: str
    prompt_hash: str
    prompt: str
    target: str
    answer: str
    scores: dict[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """One task or group of one model."""

    name: str
    version: str
    num_fewshot: int
    metrics: tuple[MetricValue, ...]
    samples: tuple[Sample, ...]  # none for a group
    members: tuple[str, ...] = ()  # the tasks of a group


def read(job: Job) -> list[Measured]:
    """Return what a finished job measured: its groups first, then its tasks.

    Raises:
        EvaluateError: the files are not what this version of the harness writes.
    """
    try:
        done = json.loads((job.directory / "done.json").read_text(encoding="utf-8"))
        results = json.loads((job.directory / done["results"]).read_text(encoding="utf-8"))
        samples = {task: _samples(job.directory / file) for task, file in done["samples"].items()}
        groups = results.get("groups") or {}
        found = [_measured(name, results, (), _tasks_of(name, results)) for name in groups]
        return found + [_measured(name, results, samples[name], ()) for name in done["samples"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"the harness's results cannot be read: {type(error).__name__}: {error}"
        do = "remove the directory and run again; tunesmith reads results of lm_eval 0.4.13 and later"
        raise EvaluateError(what, where=str(job.directory), do=do) from None


def _tasks_of(group: str, results: dict[str, Any]) -> tuple[str, ...]:
    """Return the tasks in a group and its groups."""
    found: list[str] = []
    for member in results["group_subtasks"].get(group, []):
        found += _tasks_of(member, results) if member in results["group_subtasks"] else [member]
    return tuple(dict.fromkeys(found))


def _measured(name: str, results: dict[str, Any], samples: tuple[Sample, ...], members: tuple[str, ...]) -> Measured:
    numbers = results["groups"][name] if members else results["results"][name]
    better = results["higher_is_better"].get(name) or {}
    metrics = []
    for key, value in numbers.items():
        metric, comma, filter_name = key.partition(",")
        if comma and not metric.endswith("_stderr") and _is_number(value):
            stderr: Any = numbers.get(f"{metric}_stderr,{filter_name}")
            stderr = float(stderr) if isinstance(stderr, int | float) and math.isfinite(stderr) else None
            metrics.append(MetricValue(metric, filter_name, float(value), stderr, better.get(metric) is not False))
    shots = results["n-shot"].get(name, 0)
    num_fewshot = int(shots) if _is_number(shots) else 0
    return Measured(name, str(results["versions"].get(name)), num_fewshot, tuple(metrics), samples, members)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _samples(path: Path) -> tuple[Sample, ...]:
    """Return the items of a samples file, which has one line per item and filter."""
    found: dict[int, Sample] = {}
    for line in _lines(path):
        sample = found.setdefault(int(line["doc_id"]), _sample(line))
        for metric in line["metrics"]:
            value = line.get(metric)
            if _is_number(value) or isinstance(value, bool):
                sample.scores[metric, str(line["filter"])] = float(value)
    return tuple(found[doc_id] for doc_id in sorted(found))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def _sample(line: dict[str, Any]) -> Sample:
    requests = [request for _, request in sorted(line["arguments"].items(), key=lambda item: int(item[0][9:]))]
    prompt = requests[0].get("arg_0", "") if requests else ""
    return Sample(
        doc_id=int(line["doc_id"]),
        doc_hash=str(line["doc_hash"]),
        prompt_hash=str(line["prompt_hash"]),
        prompt=str(prompt),
        target=_target(line["target"], requests),
        answer=_answer(line, requests),
    )


def _target(target: Any, requests: list[dict[str, Any]]) -> str:
    """Return the reference: of a multiple choice the text of the right option, which the harness gives by number."""
    text = str(target)
    options = [request.get("arg_1") for request in requests]
    is_choice = len(options) > 1 and all(isinstance(option, str) for option in options)
    if is_choice and text.isdigit() and int(text) < len(options):
        return str(options[int(text)]).strip()
    return text


def _answer(line: dict[str, Any], requests: list[dict[str, Any]]) -> str:
    """Return what the model said: its text, or the option it finds likeliest."""
    responses = [response[0] if isinstance(response, list) and response else response for response in line["resps"]]
    options = [request.get("arg_1") for request in requests]
    if len(options) > 1 and all(isinstance(option, str) for option in options):
        likelihoods = [float(response[0]) for response in responses[: len(options)]]
        return str(options[likelihoods.index(max(likelihoods))]).strip()
    return str(responses[0]) if responses else ""
