"""Calls are equal when they are the same JSON, and what differs has one name."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.evaluate.calls import Call, Unparsable, compare, equal, parse_arguments


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (1, 1.0, True),
        (1, 2, False),
        (10**30, 1e30, False),  # a float near a whole number is not that number
        (True, 1, False),
        (False, 0, False),
        (True, True, True),
        (None, None, True),
        (None, False, False),
        (None, "", False),
        ("1", 1, False),
        ("Paris", "paris", False),
        ("a ", "a", False),
        ([1, 2], [1.0, 2], True),
        ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        ([], {}, False),
        ({"a": 1, "b": [True]}, {"b": [True], "a": 1.0}, True),
        ({"a": [True]}, {"a": [1]}, False),
        ({"a": 1}, {"a": 1, "b": None}, False),
    ],
)
def test_equality_of_json_values(left: Any, right: Any, same: bool) -> None:
    assert equal(left, right) is same
    assert equal(right, left) is same


@pytest.mark.parametrize("text", ["", "{}", " { } "])
def test_no_arguments(text: str) -> None:
    assert parse_arguments(text or "") == {}


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "1",
        "null",
        "{",
        "{'a': 1}",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a":' * 100_000,
        '{"a": ' + "9" * 5000 + "}",
    ],
)
def test_arguments_that_are_no_json_object(text: str) -> None:
    with pytest.raises(Unparsable):
        parse_arguments(text)


F = Call("f", {"a": 1, "b": "x"})


@pytest.mark.parametrize(
    ("given", "error", "names", "share"),
    [
        ([F], "", True, 1.0),
        ([], "no_call", False, 0.0),
        ([F, F], "wrong_count", False, 1.0),
        ([Call("g", F.arguments)], "wrong_name", False, 0.0),
        ([Call("F", F.arguments)], "wrong_name", False, 0.0),
        ([Call("f", {"a": 1})], "missing_argument", True, 0.5),
        ([Call("f", {"a": 1, "b": "x", "c": None})], "extra_argument", True, 1.0),
        ([Call("f", {"a": 1, "b": "y"})], "wrong_value", True, 0.5),
        ([Call("f", {"a": True, "b": "x"})], "wrong_value", True, 0.5),
        ([Call("f", {"a": 1, "c": "x"})], "missing_argument", True, 0.5),
    ],
)
def test_one_expected_call(given: list[Call], error: str, names: bool, share: float) -> None:
    found = compare([F], given)
    assert (found.error, found.names_equal, found.equal_arguments_fraction) == (error, names, share)


def test_order_of_calls_does_not_matter() -> None:
    one, two, three = Call("f", {"a": 1}), Call("f", {"a": 2}), Call("g", {})
    assert compare([one, two, three], [three, two, one]).error == ""


def test_each_given_call_serves_once() -> None:
    one, two = Call("f", {"a": 1}), Call("f", {"a": 2})
    found = compare([one, two], [one, one])
    assert (found.error, found.equal_arguments_fraction) == ("wrong_value", 0.5)


def test_true_and_one_are_told_apart_when_pairing() -> None:
    assert (
        compare([Call("f", {"a": 1}), Call("f", {"a": True})], [Call("f", {"a": True}), Call("f", {"a": 1})]).error
        == ""
    )


def test_equal_calls_are_paired_before_similar_ones() -> None:
    # Greedy pairing in order would give the first expected call the second one's equal.
    expected = [Call("f", {"a": 1, "b": 1}), Call("f", {"a": 1, "b": 2})]
    given = [Call("f", {"a": 1, "b": 2}), Call("f", {"a": 9, "b": 1})]
    assert compare(expected, given).equal_arguments_fraction == 0.75


def test_call_without_arguments() -> None:
    assert compare([Call("f", {})], [Call("f", {})]).equal_arguments_fraction == 1.0
    assert compare([Call("f", {})], [Call("g", {})]).equal_arguments_fraction == 0.0
