"""The language of `gate`: comparisons of numbers, and what became of a metric from base to tuned.

    evaluate.text.exact_match >= 0.9                                 a number of the run against a limit
    evaluate.text.exact_match - evaluate.text.exact_match.base > 0.1 sums, products and parentheses of numbers
    bench.c16.ttft_p95_ms < 3 * bench.c1.ttft_p95_ms                 numbers on both sides
    improved(evaluate.text.exact_match)                              better than the base model, p < 0.05
    not_regressed(evaluate.text.exact_match)                         not worse than the base model beyond chance
    not_regressed(evaluate.text.exact_match, 0.02)                   at most 0.02 worse, with 95 % confidence

A path names a number of the run: `evaluate.TASK.METRIC` (the tuned model's value; `evaluate.TASK.METRIC.base` and
other fields of its record, too), `bench.LEVEL.METRIC`, `train.FIELD`, `merge.proof.FIELD`, `data.FIELD` or
`data.counts.FIELD`. A minus sign stands between spaces: `a-b` is one name.

Parsed here, so that `check` finds a broken rule before anything runs; `gate/names.py` knows which numbers a run will
have, `gate/stage.py` decides.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from tunesmith.frozen import frozen

SECTIONS = ("evaluate", "bench", "train", "merge", "data")
_SHAPES = {
    "evaluate": "`evaluate.TASK.METRIC`, such as `evaluate.text.exact_match`",
    "bench": "`bench.LEVEL.METRIC`, such as `bench.c16.ttft_p95_ms`",
    "train": "`train.FIELD`, such as `train.final_loss`",
    "merge": "`merge.proof.FIELD`, such as `merge.proof.top1_agreement`",
    "data": "`data.FIELD`, such as `data.counts.quarantined`",
}
_EXPECTED = "expected `PATH < NUMBER` (or <=, >, >=, ==), `improved(PATH)` or `not_regressed(PATH)`"
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?![\w.])"
    r"|(?P<name>[A-Za-z_](?:[\w.-]*[\w.])?)|(?P<sign><=|>=|==|[<>+\-*/(),]))"
)
_MAX_CHARACTERS = 400

Change = Literal["improved", "not_regressed"]
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}


class RuleError(ValueError):
    """The text is not a rule; the message says what was expected."""


@frozen
class Value:
    """A leaf of an expression: a number as written, or the path of one."""

    number: float = 0.0
    path: str = ""


@frozen
class Operation:
    """Two expressions and the sign between them: + - * or /."""

    sign: str
    left: Expression
    right: Expression


Expression = Value | Operation


@frozen
class Comparison:
    """`left sign right`."""

    text: str
    left: Expression
    sign: str
    right: Expression

    @property
    def paths(self) -> tuple[str, ...]:
        """The numbers it reads, each once, in the order of the text."""
        return tuple(dict.fromkeys([*paths_of(self.left), *paths_of(self.right)]))

    def holds_for(self, left: float, right: float) -> bool:
        """Return whether the two sides' values satisfy it; nan satisfies nothing."""
        return _COMPARISONS[self.sign](left, right)


@frozen
class Changed:
    """`improved(path)` or `not_regressed(path, margin)`."""

    text: str
    change: Change
    path: str
    margin: float | None = None  # None: not significantly worse is good enough

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,)


Rule = Comparison | Changed


def paths_of(expression: Expression) -> Iterator[str]:
    """Yield the paths in an expression, left to right."""
    if isinstance(expression, Operation):
        yield from paths_of(expression.left)
        yield from paths_of(expression.right)
    elif expression.path:
        yield expression.path


def value_of(expression: Expression, numbers: Mapping[str, float]) -> float:
    """Return an expression's value; dividing by zero gives nan, which satisfies no comparison.

    Raises:
        KeyError: a path is not among the numbers.
    """
    if isinstance(expression, Value):
        return float(numbers[expression.path]) if expression.path else expression.number
    left, right = value_of(expression.left, numbers), value_of(expression.right, numbers)
    if expression.sign == "/":
        return left / right if right else math.nan
    if expression.sign == "*":
        return left * right
    return left + right if expression.sign == "+" else left - right


def parse_rule(text: str) -> Rule:
    """Read one rule.

    Raises:
        RuleError: the text is none of the forms.
    """
    try:
        return _Reader(text).rule()
    except RecursionError:
        raise RuleError("too many parentheses") from None


class _Reader:
    """Reads tokens from left to right: a rule is a change or two sums with a comparison between them."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._next = 0

    def rule(self) -> Rule:
        name = self._peek()[1]
        if name in ("improved", "not_regressed") and self._peek(1)[1] == "(":
            return self._change(name)  # type: ignore[arg-type]
        left = self._sum()
        sign = self._take()[1]
        if sign not in _COMPARISONS:
            raise RuleError(_EXPECTED)
        comparison = Comparison(self._text, left, sign, self._sum())
        self._expect_end()
        if not comparison.paths:
            raise RuleError("it reads no number of the run; " + _EXPECTED)
        return comparison

    def _change(self, change: Change) -> Changed:
        self._next += 2
        kind, path = self._take()
        if kind != "name":
            raise RuleError(_EXPECTED)
        margin = None
        if self._peek()[1] == "," and change == "not_regressed":
            self._next += 1
            kind, number = self._take()
            if kind != "number":
                raise RuleError("the second part of `not_regressed(PATH, NUMBER)` says how much worse is still fine")
            margin = float(number)
        if self._take()[1] != ")":
            raise RuleError(_EXPECTED)
        self._expect_end()
        path = _checked_path(path)
        if not path.startswith("evaluate."):
            raise RuleError(f"only numbers of `evaluate` have a base model to be {change.replace('_', ' ')} against")
        return Changed(self._text, change, path, margin)

    def _sum(self) -> Expression:
        found = self._product()
        while self._peek()[1] in ("+", "-"):
            found = Operation(self._take()[1], found, self._product())
        return found

    def _product(self) -> Expression:
        found = self._factor()
        while self._peek()[1] in ("*", "/"):
            found = Operation(self._take()[1], found, self._factor())
        return found

    def _factor(self) -> Expression:
        kind, word = self._take()
        if kind == "number":
            return Value(float(word))
        if kind == "name":
            return _named(word)
        if word == "-":
            return Operation("-", Value(0.0), self._factor())
        if word == "(":
            inside = self._sum()
            if self._take()[1] == ")":
                return inside
        raise RuleError(_EXPECTED)

    def _peek(self, ahead: int = 0) -> tuple[str, str]:
        place = self._next + ahead
        return self._tokens[place] if place < len(self._tokens) else ("end", "")

    def _take(self) -> tuple[str, str]:
        token = self._peek()
        self._next += 1
        return token

    def _expect_end(self) -> None:
        if self._peek()[0] != "end":
            raise RuleError(_EXPECTED)


def _tokens(text: str) -> list[tuple[str, str]]:
    if len(text) > _MAX_CHARACTERS:
        raise RuleError(f"longer than {_MAX_CHARACTERS} characters")
    found, place, end = [], 0, len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None:
            raise RuleError(_EXPECTED)
        found.append((str(match.lastgroup), match.group(match.lastgroup or 0)))
        place = match.end()
    return found


def _named(word: str) -> Value:
    if word.lower() == "nan":
        raise RuleError("no value is above, below or equal to nan")
    if word.lower() in ("inf", "infinity"):
        return Value(math.inf)
    if "." not in word and word not in SECTIONS:
        raise RuleError(f"{word!r} is not a number, and a path begins with {', '.join(SECTIONS)}; {_EXPECTED}")
    return Value(path=_checked_path(word))


def _checked_path(path: str) -> str:
    section, *rest = path.split(".")
    if section not in SECTIONS:
        raise RuleError(f"a path begins with {', '.join(SECTIONS)}; found {path!r}")
    if "" in rest:
        raise RuleError(f"{path!r} has nothing between two dots, or ends with one")
    if not rest:
        raise RuleError(f"{path!r} names a whole group of numbers, not one; write {_SHAPES[section]}")
    return path
