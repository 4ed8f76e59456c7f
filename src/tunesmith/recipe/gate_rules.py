"""The language of `gate`: `NUMBER_PATH < 500` (also <=, >, >=, ==) and `improved(NUMBER_PATH)`.

A path names a number of the run: `evaluate.TASK.METRIC` (the tuned model's value), `bench.cN.METRIC`, or
`train.FIELD`. Parsed here, so that `check` finds a broken rule before anything runs; decided in `gate.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OPERATORS = ("<=", ">=", "==", "<", ">")
SECTIONS = ("evaluate", "bench", "train", "data")


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
    return Rule(text, _checked_path(path), operator=operator, limit=limit)


def _checked_path(path: str) -> str:
    section = path.split(".")[0]
    if section not in SECTIONS:
        raise RuleError(f"a path begins with {', '.join(SECTIONS)}; found {path!r}")
    if len(path.split(".")) < 2:
        raise RuleError(f"{path!r} names a whole section, not a number")
    return path
