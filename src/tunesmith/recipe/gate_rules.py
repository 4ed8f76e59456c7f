"""The language of `gate`: `NUMBER_PATH < 500` (also <=, >, >=, ==) and `improved(NUMBER_PATH)`.

A path names a number of the run: `evaluate.TASK.METRIC` (the tuned model's value; `evaluate.TASK.METRIC.base` and
other fields of its record, too), `bench.cN.METRIC`, `train.FIELD`, `data.FIELD` or `data.counts.FIELD`. Parsed here,
so that `check` finds a broken rule before anything runs; decided in `gate.py`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

OPERATORS = ("<=", ">=", "==", "<", ">")
SECTIONS = ("evaluate", "bench", "train", "data")
_SHAPES = {
    "evaluate": "`evaluate.TASK.METRIC`, such as `evaluate.text.exact_match`",
    "bench": "`bench.cN.METRIC`, such as `bench.c16.ttft_p95_ms`",
    "train": "`train.FIELD`, such as `train.final_loss`",
    "data": "`data.FIELD`, such as `data.counts.quarantined`",
}


class RuleError(ValueError):
    """The text is not a rule; the message says what was expected."""


@dataclass(frozen=True)
class Rule:
    text: str
    path: str
    improved: bool = False
    operator: str = ""
    limit: float = 0.0

    def holds_for(self, value: float) -> bool:
        """Return whether a value satisfies the comparison."""
        compare = {
            "<": value < self.limit,
            "<=": value <= self.limit,
            ">": value > self.limit,
            ">=": value >= self.limit,
            "==": value == self.limit,
        }
        return compare[self.operator]


def parse_rule(text: str) -> Rule:
    """Read one rule.

    Raises:
        RuleError: neither form fits.
    """
    improved = re.fullmatch(r"\s*improved\(\s*([\w.-]+)\s*\)\s*", text)
    if improved:
        path = _checked_path(improved.group(1))
        if not path.startswith("evaluate."):
            raise RuleError("only numbers of `evaluate` have a base model to improve on")
        return Rule(text, path, improved=True)
    comparison = re.fullmatch(r"\s*([\w.-]+)\s*(<=|>=|==|<|>)\s*(\S+)\s*", text)
    if not comparison:
        raise RuleError("expected `PATH < NUMBER` (or <=, >, >=, ==) or `improved(PATH)`")
    path, operator, number = comparison.groups()
    try:
        limit = float(number)
    except ValueError:
        raise RuleError(f"{number!r} is not a number") from None
    if math.isnan(limit):
        raise RuleError("no value is above, below or equal to nan")
    return Rule(text, _checked_path(path), operator=operator, limit=limit)


def _checked_path(path: str) -> str:
    section, *rest = path.split(".")
    if section not in SECTIONS:
        raise RuleError(f"a path begins with {', '.join(SECTIONS)}; found {path!r}")
    if "" in rest:
        raise RuleError(f"{path!r} has nothing between two dots, or ends with one")
    if len(rest) < (1 if section in ("train", "data") else 2):
        raise RuleError(f"{path!r} names a whole group of numbers, not one; write {_SHAPES[section]}")
    return path
