"""From the harness's results to scores: base beside tuned, paired item by item where a number is a mean over items.

The numbers are the harness's own, to the last digit. Where a metric is the mean of its items' values (accuracy, exact
match; of a group also the mean of its tasks' means), both models are compared on the same items, with the tests that
all of tunesmith's tasks use. Other metrics (BLEU, F1 over a corpus, perplexity) are compared by the harness's standard
errors, as if the two models had answered different items: wider intervals than necessary, never narrower ones when the
two answers to an item go together.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.artifacts import Which
from tunesmith.errors import EvaluateError
from tunesmith.evaluate import stats
from tunesmith.evaluate.lm_eval.results import Measured, MetricValue, Sample
from tunesmith.evaluate.summary import Number, Outcome, summarise
from tunesmith.evaluate.task import Array, Judgement, Metric, Transcript

_TOLERANCE = 1e-9
_PROMPT_TAIL_CHARACTERS = 600
Record = dict[str, Number]
Values = dict[tuple[str, int], float]  # (task, doc_id) -> value of one metric


@dataclass(frozen=True)
class Side:
    """Everything measured for one model, by name of the task or group."""

    measured: Mapping[str, Measured]

    def samples(self, name: str) -> list[tuple[str, Sample]]:
        """Return the items of a task, or of the tasks of a group, each with its task's name."""
        of = self.measured[name]
        tasks = [self.measured[member] for member in of.members if member in self.measured] if of.members else [of]
        return [(task.name, sample) for task in tasks for sample in task.samples]

    def values(self, name: str, key: tuple[str, str]) -> Values:
        """Return a metric's value for each item that has one."""
        return {(task, s.doc_id): s.scores[key] for task, s in self.samples(name) if key in s.scores}


def groups_of(side: Side) -> dict[str, str]:
    """Return for each task and group that is part of a group with metrics, the outermost such group."""
    found: dict[str, str] = {}
    for group in sorted(side.measured.values(), key=lambda measured: len(measured.members)):
        inside = [m.name for m in side.measured.values() if m.members and set(m.members) < set(group.members)]
        found |= dict.fromkeys([*group.members, *inside] if group.metrics else [], group.name)
    return found


def task_name(harness_name: str) -> str:
    """Return what scores and gate rules call a task of the harness."""
    return "lm_eval." + re.sub(r"[^\w-]", "_", harness_name)


def metric_names(metrics: Sequence[MetricValue]) -> dict[tuple[str, str], str]:
    """Return our name of each (metric, filter): the metric's own for its first filter, with the filter for others."""
    names: dict[tuple[str, str], str] = {}
    for metric in metrics:
        plain = re.sub(r"[^\w-]", "_", metric.name)
        name = plain if plain not in names.values() else f"{plain}-" + re.sub(r"[^\w-]", "_", metric.filter)
        names[metric.name, metric.filter] = name
    return names


def compare(name: str, sides: Mapping[Which, Side], facts: Record, seed: int) -> dict[str, Record]:
    """Return metric -> record of one task or group.

    Args:
        name: the harness's name.
        sides: `tuned`, and `base` when it was measured.
        facts: added to every record: harness and task version, few-shot examples, backend, chat template.
        seed: of resampling.

    Raises:
        EvaluateError: the two models were not asked the same items.
    """
    tuned = sides["tuned"].measured[name]
    _check_same_items(name, sides)
    records: dict[str, Record] = {}
    for key, our_name in metric_names(tuned.metrics).items():
        own = {which: _find(side.measured[name].metrics, key) for which, side in sides.items()}
        if any(value is None for value in own.values()):
            continue
        numbers = {which: value for which, value in own.items() if value is not None}
        record = _paired(name, key, sides, numbers, seed) or _unpaired(numbers, len(sides["tuned"].samples(name)))
        for which, value in numbers.items():
            record |= {which: value.value, f"{which}_stderr": value.stderr}
        records[our_name] = record | {"filter": key[1]} | facts
    return records


def _find(metrics: Sequence[MetricValue], key: tuple[str, str]) -> MetricValue | None:
    return next((metric for metric in metrics if (metric.name, metric.filter) == key), None)


def _check_same_items(name: str, sides: Mapping[Which, Side]) -> None:
    hashes = {which: [s.doc_hash for s in side.measured[name].samples] for which, side in sides.items()}
    if len({tuple(of_model) for of_model in hashes.values()}) > 1:
        what = f"base and tuned were asked different items of {name!r}: its data changed in between"
        raise EvaluateError(what, do="remove evaluate/lm_eval in the run directory and run again")


def _paired(
    name: str, key: tuple[str, str], sides: Mapping[Which, Side], numbers: Mapping[Which, MetricValue], seed: int
) -> Record | None:
    """Return the record of a metric that is a mean over items; None when it is not, or an item lacks it."""
    values = {which: side.values(name, key) for which, side in sides.items()}
    items = sorted(values["tuned"])
    if not items or any(sorted(of_model) != items for of_model in values.values()):
        return None
    for blocks in _ways_to_average(items):
        statistics = {which: _statistics(of_model, items, blocks) for which, of_model in values.items()}
        combine = _mean_of_means(max(blocks) + 1)
        means = {which: float(combine(rows.sum(axis=0, keepdims=True))[0]) for which, rows in statistics.items()}
        if all(math.isclose(means[w], numbers[w].value, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE) for w in numbers):
            is_binary = max(blocks) == 0 and all(v in (0.0, 1.0) for of in values.values() for v in of.values())
            better = numbers["tuned"].higher_is_better
            scale = _scale(v for of in values.values() for v in of.values())
            metric = Metric(key[0], is_binary, better, scale, combine)
            return summarise((metric,), _outcomes(metric, statistics), seed)[key[0]]
    return None


def _ways_to_average(items: Sequence[tuple[str, int]]) -> list[list[int]]:
    """Return for each way the block of every item: all in one, or one block per task whose means are averaged."""
    tasks = sorted({task for task, _ in items})
    ways = [[0] * len(items)]
    return ways if len(tasks) == 1 else [*ways, [tasks.index(task) for task, _ in items]]


def _statistics(values: Values, items: Sequence[tuple[str, int]], blocks: Sequence[int]) -> Array:
    """Return (value, 1) of each item in the columns of its block."""
    rows = np.zeros((len(items), 2 * (max(blocks) + 1)))
    for row, (item, block) in enumerate(zip(items, blocks, strict=True)):
        rows[row, 2 * block : 2 * block + 2] = values[item], 1.0
    return rows


def _mean_of_means(num_blocks: int) -> Any:
    def combine(sums: Array) -> Array:
        totals, counts = sums[:, 0 : 2 * num_blocks : 2], sums[:, 1 : 2 * num_blocks : 2]
        means = np.divide(totals, counts, out=np.zeros_like(totals), where=counts > 0)
        present = np.maximum(1, (counts > 0).sum(axis=1))
        averaged: Array = means.sum(axis=1) / present
        return averaged

    return combine


def _scale(values: Iterable[float]) -> float:
    """Return 1 for shares; for everything else 100, so that it is told in points and not in per cent."""
    return 1.0 if all(0 <= value <= 1 for value in values) else 100.0


def _outcomes(metric: Metric, statistics: Mapping[Which, Array]) -> dict[Which, list[Outcome]]:
    return {
        which: [Outcome(Transcript(()), Judgement(False, {metric.name: tuple(row)})) for row in rows.tolist()]
        for which, rows in statistics.items()
    }


def _unpaired(numbers: Mapping[Which, MetricValue], num_items: int) -> Record:
    """Return the record of a metric that is no mean over items, from the harness's standard errors."""
    better = numbers["tuned"].higher_is_better
    record: Record = {"base": None, "num_items": num_items, "better": "higher" if better else "lower"}
    record["maximum"] = _scale(number.value for number in numbers.values())
    for which, number in numbers.items():
        if number.stderr is not None:
            record[f"{which}_low"] = number.value - stats.Z_95 * number.stderr
            record[f"{which}_high"] = number.value + stats.Z_95 * number.stderr
    if "base" not in numbers:
        return record
    difference = numbers["tuned"].value - numbers["base"].value
    record |= {"num_pairs": num_items, "difference": difference}
    errors = [number.stderr for number in numbers.values()]
    error = math.hypot(*(error or 0.0 for error in errors))
    if None in errors or error == 0:
        words = "cannot tell: the harness gives no standard error"
        return record | {"verdict": "cannot tell", "verdict_in_words": words}
    p_value = math.erfc(abs(difference) / error / math.sqrt(2))
    low, high = difference - stats.Z_95 * error, difference + stats.Z_95 * error
    verdict = stats.verdict(p_value, (low, high), higher_is_better=better)
    needed = stats.items_needed_by_spread(difference, error, num_items)
    record |= {"difference_low": low, "difference_high": high}
    words = stats.in_words(verdict, num_items, needed)
    return record | {"p_value": p_value, "verdict": verdict, "verdict_in_words": words, "num_items_needed": needed}


def item_lines(name: str, sides: Mapping[Which, Side]) -> list[str]:
    """Return one JSON line per item of a task: its prompt's end, the reference, and what each model made of it."""
    names = metric_names(sides["tuned"].measured[name].metrics)
    of_models = {which: side.measured[name].samples for which, side in sides.items()}
    lines = []
    for index, sample in enumerate(of_models["tuned"]):
        line: dict[str, Any] = {
            "id": f"{name}#{sample.doc_id}",
            "prompt_hash": sample.prompt_hash,
            "prompt_tail": _tail(sample.prompt),
            "reference": sample.target,
        }
        line |= {which: _told(samples[index], names) for which, samples in of_models.items()}
        lines.append(json.dumps(line))
    return lines


def _told(sample: Sample, names: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    scores = {names[key]: value for key, value in sample.scores.items() if key in names}
    first = next(iter(scores.values()), 0.0)
    return {"answer": sample.answer, "answered": True, "correct": first == 1.0, "scores": scores, "error": ""}


def _tail(prompt: str) -> str:
    return prompt if len(prompt) <= _PROMPT_TAIL_CHARACTERS else f"…{prompt[-_PROMPT_TAIL_CHARACTERS:]}"
