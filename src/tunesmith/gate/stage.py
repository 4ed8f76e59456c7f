"""Decide the rules of `gate`, each with its evidence. A failed rule is a result here; the pipeline ends on it later."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any

from tunesmith.artifacts import Scores, Verdict, not_answered
from tunesmith.frozen import frozen
from tunesmith.gate.numbers import is_number, metric_records, numbers, origin
from tunesmith.recipe.gate_rules import Changed, Comparison, Expression, Operation, parse_rule, value_of
from tunesmith.recipe.schema import Recipe
from tunesmith.store.run_dir import RunDir


def run(recipe: Recipe, run_dir: RunDir) -> Verdict:
    """Hold every rule against the run's numbers. Without rules the gate is passed."""
    return decide(recipe.gate, run_dir)


def decide(rules: Sequence[str], run_dir: RunDir) -> Verdict:
    """Hold any rules against a run's numbers; nothing is written.

    Raises:
        RuleError: a text is not a rule.
    """
    scores = run_dir.find(Scores)
    known = _Known(run_dir, numbers(run_dir), metric_records(scores), scores)
    decided = tuple(_decide(text, known) for text in rules)
    return Verdict(passed=all(rule["passed"] for rule in decided), rules=decided)


@frozen
class _Known:
    """What the rules are held against."""

    run_dir: RunDir
    numbers: dict[str, float]
    records: dict[str, dict[str, Any]]
    scores: Scores | None

    def facts(self, path: str) -> dict[str, Any]:
        """Return what is known of one number: its value, what surrounds it, and the file it was counted from."""
        record = self.records.get(path, {})
        kept = {"base": "base", "tuned_low": "low", "tuned_high": "high", "num_items": "num_items"}
        around = {short: record[name] for name, short in kept.items() if is_number(record.get(name))}
        value = _plain(self.numbers[path]) if path in self.numbers else None
        return {"path": path, "value": value} | around | {"from": origin(path, self.run_dir, self.scores)}


def _decide(text: str, known: _Known) -> dict[str, Any]:
    rule = parse_rule(text)
    if isinstance(rule, Changed):
        passed, evidence = _changed(rule, known)
        sides: dict[str, Any] = {}
    else:
        passed, evidence, sides = _compared(rule, known)
    return {
        "rule": rule.text,
        "passed": passed,
        "evidence": evidence,
        "numbers": [known.facts(path) for path in rule.paths],
    } | sides


def _compared(rule: Comparison, known: _Known) -> tuple[bool, str, dict[str, Any]]:
    missing = [path for path in rule.paths if path not in known.numbers]
    if missing:
        return False, "; ".join(no_such_number(path, list(known.numbers)) for path in missing), {}
    left, right = value_of(rule.left, known.numbers), value_of(rule.right, known.numbers)
    told = [_told(path, known.numbers[path], known.records.get(path, {})) for path in rule.paths]
    if _is_worked_out(rule.left) or _is_worked_out(rule.right) or len(rule.paths) > 1:
        told.insert(0, f"{_show(left)} {rule.sign} {_show(right)}")
    passed = rule.holds_for(left, right)
    return passed, "; ".join(told), {"left": _plain(left), "sign": rule.sign, "right": _plain(right)}


def _is_worked_out(side: Expression) -> bool:
    return isinstance(side, Operation)


def _changed(rule: Changed, known: _Known) -> tuple[bool, str]:
    """Judge a metric's change from base to tuned by its paired comparison."""
    record, path = known.records.get(rule.path), rule.path
    if record is None:
        return False, no_such_number(path, list(known.records))
    base, tuned = record.get("base"), record.get("tuned")
    if not is_number(base) or not is_number(tuned):
        return False, f"{path} was not measured on both models: base {_show(base)}, tuned {_show(tuned)}"
    parts = [f"base {_show(base)} → tuned {_show(tuned)}"]
    if is_number(record.get("difference")):
        parts.append(_difference(record))
    parts += filter(None, [not_answered(record)])
    verdict = str(record.get("verdict_in_words") or record.get("verdict") or "not compared")
    if rule.margin is not None:
        return _within_margin(record, rule.margin, parts)
    parts.append(verdict)
    if rule.change == "improved":
        return verdict == "improved", "; ".join(parts)
    return verdict in ("improved", "cannot tell") and record.get("num_pairs") != 0, "; ".join(parts)


def _within_margin(record: dict[str, Any], margin: float, parts: list[str]) -> tuple[bool, str]:
    """Not inferior: the end of the difference's 95 % interval on the worse side stays within the margin."""
    worse_end = record.get("difference_high" if record.get("better") == "lower" else "difference_low")
    if not is_number(worse_end):
        return False, "; ".join([*parts, "the difference has no interval"])
    loss = float(worse_end) if record.get("better") == "lower" else -float(worse_end)  # type: ignore[arg-type]
    if loss <= margin:
        return True, "; ".join([*parts, f"at most {_show(max(0.0, loss))} worse, {_show(margin)} allowed"])
    return False, "; ".join([*parts, f"may be {_show(loss)} worse, {_show(margin)} allowed"])


def _difference(record: dict[str, Any]) -> str:
    told = f"difference {_show(record['difference'], '+')}"
    inside = []
    if is_number(record.get("difference_low")):
        inside.append(f"{_show(record['difference_low'], '+')} … {_show(record.get('difference_high'), '+')}")
    if is_number(record.get("p_value")):
        inside.append(f"p = {_show(record['p_value'])}")
    told += f" ({', '.join(inside)})" if inside else ""
    return f"{told} on {_show(record['num_pairs'])} items" if is_number(record.get("num_pairs")) else told


def _told(path: str, value: float, record: dict[str, Any]) -> str:
    parts = [f"{path} = {_show(value)}"]
    if is_number(record.get("tuned_low")):
        parts.append(f"95 % interval {_show(record['tuned_low'])} … {_show(record.get('tuned_high'))}")
    if is_number(record.get("num_items")):
        parts.append(f"{_show(record['num_items'])} items")
    shown = ", ".join(parts)
    if is_number(record.get("base")):
        shown += f"; base {_show(record['base'])}"
    return "; ".join(filter(None, [shown, not_answered(record)]))


def no_such_number(path: str, known: list[str]) -> str:
    """Say that a run has no number of this path, and which are nearest."""
    if not known:
        return f"the run has no number {path}: the stage that makes it left none"
    return f"the run has no number {path}; nearest: {', '.join(nearest_paths(path, known))}"


def nearest_paths(path: str, known: Sequence[str]) -> list[str]:
    """Return up to three paths that may be meant: those below it, else those spelt most like it."""
    below = [name for name in known if name.startswith(f"{path}.")][:3]
    return below or difflib.get_close_matches(path, known, n=3, cutoff=0.5) or list(known[:3])


def _plain(value: float) -> float | None:
    """Return a value as JSON can hold it."""
    return value if math.isfinite(value) else None


def _show(value: Any, sign: str = "") -> str:
    """Return four significant digits, or a dash for no number."""
    if not is_number(value):
        return "–"
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return f"{int(value):{sign},}"
    return f"{value:{sign}.4g}"
