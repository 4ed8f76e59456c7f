"""What must hold for any calls: a call equals itself however it travels, and any change is noticed."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.evaluate.calls import Call, compare, equal, parse_arguments

scalars = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=8)
finite = scalars.filter(lambda value: not (isinstance(value, float) and abs(value) == float("inf")))
values = st.recursive(
    finite,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
arguments = st.dictionaries(st.text(max_size=4), values, max_size=4)
calls = st.lists(st.builds(Call, st.sampled_from(["f", "g", "h"]), arguments), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(arguments)
def test_arguments_survive_their_journey_as_text(given_arguments: dict[str, Any]) -> None:
    assert equal(parse_arguments(json.dumps(given_arguments)), given_arguments)


@settings(deadline=None, max_examples=60)
@given(values, values)
def test_equality_is_symmetric_and_agrees_with_the_text(left: Any, right: Any) -> None:
    assert equal(left, right) == equal(right, left)
    assert equal(left, left)
    if json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True):
        assert equal(left, right)


@settings(deadline=None, max_examples=60)
@given(calls, st.randoms(use_true_random=False))
def test_shuffled_calls_are_right(expected: list[Call], random_source: random.Random) -> None:
    answered = list(expected)
    random_source.shuffle(answered)
    found = compare(expected, answered)
    assert (found.error, found.names_equal, found.equal_arguments_fraction) == ("", True, 1.0)


@settings(deadline=None, max_examples=60)
@given(calls, st.data())
def test_any_change_is_noticed(expected: list[Call], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(expected) - 1))
    changed = data.draw(st.builds(Call, st.sampled_from(["f", "g", "h"]), arguments))
    answered = [*expected[:index], changed, *expected[index + 1 :]]
    same = changed.name == expected[index].name and equal(changed.arguments, expected[index].arguments)
    assert (compare(expected, answered).error == "") is same
    assert compare(expected, answered[:-1]).error in ("no_call", "wrong_count")
