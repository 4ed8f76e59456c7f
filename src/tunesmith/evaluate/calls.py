"""Compare function calls strictly, as JSON values, and name what is wrong. Nothing a model wrote is ever executed.

Equal means: the same JSON. Numbers are equal when their values are (1 and 1.0 are one JSON number), a boolean is no
number, strings are equal letter by letter, lists in their order, objects whatever the order of their keys. Several
calls in one turn are independent of each other: their order does not matter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """A function's name and its arguments."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name}({json.dumps(self.arguments, ensure_ascii=False)})"


@dataclass(frozen=True)
class Comparison:
    """How an answer's calls relate to the expected ones."""

    error: str  # no_call | wrong_count | wrong_name | missing_argument | extra_argument | wrong_value; empty when equal
    names_equal: bool
    equal_arguments_fraction: float  # of the expected arguments, those given with an equal value


class Unparsable(ValueError):
    """Arguments that are no JSON object."""


def parse_arguments(text: str) -> dict[str, Any]:
    """Read a call's arguments; an empty text means none.

    Raises:
        Unparsable: no JSON object, or one with NaN or infinity, which JSON does not have.
    """
    try:
        arguments = json.loads(text or "{}", parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Unparsable(str(error)) from None
    if not isinstance(arguments, dict):
        raise Unparsable(f"expected an object, found {type(arguments).__name__}")
    return arguments


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def equal(left: Any, right: Any) -> bool:
    """Return whether two JSON values are the same."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return left == right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(value, right[key]) for key, value in left.items())
    return type(left) is type(right) and bool(left == right)


def compare(expected: Sequence[Call], given: Sequence[Call]) -> Comparison:
    """Compare the calls of one turn; the error is the first that applies, in the order of `Comparison.error`."""
    assert expected, "a turn without an expected call is judged by whether there is a call at all"
    names_equal = sorted(call.name for call in expected) == sorted(call.name for call in given)
    pairs = _pair(expected, given)
    share = sum(_equal_arguments(wanted, got) for wanted, got in pairs) / len(pairs)
    if not given:
        error = "no_call"
    elif len(given) != len(expected):
        error = "wrong_count"
    elif not names_equal:
        error = "wrong_name"
    else:
        errors = [_argument_error(wanted, got) for wanted, got in pairs if got is not None]
        ranked = [kind for kind in ("missing_argument", "extra_argument", "wrong_value") if kind in errors]
        error = ranked[0] if ranked else ""
    return Comparison(error, names_equal, share)


def _pair(expected: Sequence[Call], given: Sequence[Call]) -> list[tuple[Call, Call | None]]:
    """Give every expected call its counterpart: an equal one first, then one of the same name with most in common."""
    left = list(given)
    pairs: list[tuple[Call, Call | None]] = []
    unequal = []
    for wanted in expected:
        same = [_calls_equal(wanted, got) for got in left]
        if any(same):
            pairs.append((wanted, left.pop(same.index(True))))
        else:
            unequal.append(wanted)
    for wanted in unequal:
        likeness = [_equal_arguments(wanted, got) if got.name == wanted.name else -1.0 for got in left]
        best = max(likeness, default=-1.0)
        pairs.append((wanted, left.pop(likeness.index(best)) if best >= 0 else None))
    return pairs


def _calls_equal(left: Call, right: Call) -> bool:
    return left.name == right.name and equal(left.arguments, right.arguments)


def _equal_arguments(wanted: Call, got: Call | None) -> float:
    """Return the share of a call's arguments that its counterpart has, too; one without arguments is all there."""
    if got is None:
        return 0.0
    if not wanted.arguments:
        return 1.0
    same = sum(key in got.arguments and equal(value, got.arguments[key]) for key, value in wanted.arguments.items())
    return same / len(wanted.arguments)


def _argument_error(wanted: Call, got: Call) -> str:
    if wanted.arguments.keys() - got.arguments.keys():
        return "missing_argument"
    if got.arguments.keys() - wanted.arguments.keys():
        return "extra_argument"
    return "" if equal(wanted.arguments, got.arguments) else "wrong_value"
