"""Decide the rules of `gate`, each with its evidence. A failed rule is a result here; the pipeline ends on it later."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

from tunesmith.artifacts import Checkpoint, Dataset, Scores, Speeds, Verdict
from tunesmith.recipe.gate_rules import Rule, parse_rule
from tunesmith.recipe.schema import Recipe
from tunesmith.store.run_dir import RunDir


def run(recipe: Recipe, run_dir: RunDir) -> Verdict:
    """Hold every rule against the run's numbers. Without rules the gate is passed."""
    found = numbers(run_dir)
    scores = run_dir.find(Scores)
    decided = tuple(_decide(parse_rule(text), found, scores) for text in recipe.gate)
    return Verdict(passed=all(rule["passed"] for rule in decided), rules=decided)


def numbers(run_dir: RunDir) -> dict[str, float]:
    """Return every number of a run by the path that rules use, in the order of the stages.

    `evaluate.TASK.METRIC` is the tuned model's value; the other fields of a metric's record stand below it.
    """
    found: dict[str, float] = {}
    for section, record in (("data", run_dir.find(Dataset)), ("train", run_dir.find(Checkpoint))):
        if record is not None:
            found |= _flat(section, dataclasses.asdict(record))
    scores = run_dir.find(Scores)
    for task, metrics in (scores.tasks if scores else {}).items():
        for metric, values in metrics.items():
            path = f"evaluate.{task}.{metric}"
            if _is_number(values.get("tuned")):
                found |= _flat(path, values["tuned"])
            found |= _flat(path, values)
    speeds = run_dir.find(Speeds)
    for level, timings in (speeds.levels if speeds else {}).items():
        found |= _flat(f"bench.{level}", timings)
    return found


def _flat(path: str, value: Any) -> dict[str, float]:
    if isinstance(value, Mapping):
        return {name: number for key, item in value.items() for name, number in _flat(f"{path}.{key}", item).items()}
    return {path: value} if _is_number(value) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _decide(rule: Rule, found: dict[str, float], scores: Scores | None) -> dict[str, Any]:
    record = _record(rule.path, scores)
    if rule.improved:
        passed, evidence = _improved(rule.path, record, found)
        value = record.get("tuned")
    elif rule.path in found:
        value = found[rule.path]
        passed, evidence = rule.holds_for(value), _told(rule.path, value, record)
    else:
        value, passed, evidence = None, False, _no_such_number(rule.path, list(found))
    return {
        "rule": rule.text,
        "passed": passed,
        "evidence": evidence,
        "path": rule.path,
        "value": value,
        "base": record.get("base"),
        "limit": None if rule.improved else rule.limit,
    }


def _record(path: str, scores: Scores | None) -> dict[str, Any]:
    """Return the metric's record that `evaluate.TASK.METRIC` names, or an empty one. Task names may hold dots."""
    task, _, metric = path.removeprefix("evaluate.").rpartition(".")
    return dict(scores.tasks.get(task, {}).get(metric, {})) if scores and path.startswith("evaluate.") else {}


def _improved(path: str, record: dict[str, Any], found: dict[str, float]) -> tuple[bool, str]:
    """Tuned is better than base, and the paired test says that this is no chance."""
    if not record:
        metrics = [name for name in found if name.startswith("evaluate.") and f"{name}.num_items" in found]
        return False, _no_such_number(path, metrics)
    base, tuned = record.get("base"), record.get("tuned")
    if not _is_number(base) or not _is_number(tuned):
        return False, f"{path} was not measured on both models: base {_show(base)}, tuned {_show(tuned)}"
    parts = [f"base {_show(base)} → tuned {_show(tuned)}"]
    if _is_number(record.get("difference")):
        low, high = _show(record["difference_low"], "+"), _show(record["difference_high"], "+")
        pairs, p_value = record["num_pairs"], _show(record["p_value"])
        parts.append(f"difference {_show(record['difference'], '+')} ({low} … {high}, p = {p_value}) on {pairs} items")
    parts += _failed_requests(record)
    parts.append(str(record.get("verdict") or "not compared"))
    return record.get("verdict") == "improved", "; ".join(parts)


def _told(path: str, value: float, record: dict[str, Any]) -> str:
    parts = [f"{path} = {_show(value)}"]
    if _is_number(record.get("tuned_low")):
        interval = f"95 % interval {_show(record['tuned_low'])} … {_show(record['tuned_high'])}"
        parts.append(f"{interval}, {record['num_items']} items")
    if _is_number(record.get("base")):
        parts.append(f"base {_show(record['base'])}")
    return "; ".join(parts + _failed_requests(record))


def _failed_requests(record: dict[str, Any]) -> list[str]:
    lost = {which: record.get(f"{which}_num_failed") or 0 for which in ("base", "tuned")}
    told = ", ".join(f"{number} of the {which} model" for which, number in lost.items() if number)
    return [f"failed requests: {told}"] if told else []


def _no_such_number(path: str, known: list[str]) -> str:
    if not known:
        return f"the run has no number {path}: the stage that makes it left none"
    near = difflib.get_close_matches(path, known, n=3, cutoff=0.5)
    below = [name for name in known if name.startswith(f"{path}.")][:3]
    return f"the run has no number {path}; nearest: {', '.join(below or near or known[:3])}"


def _show(value: Any, sign: str = "") -> str:
    """Return four significant digits, or a dash for no number."""
    if not _is_number(value):
        return "–"
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return f"{int(value):{sign},}"
    return f"{value:{sign}.4g}"
