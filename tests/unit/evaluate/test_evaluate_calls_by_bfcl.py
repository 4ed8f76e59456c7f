"""The user's own tool calls under BFCL's rules: lenient where BFCL is, strict where it is, nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunesmith.evaluate.calls import Call
from tunesmith.evaluate.calls_by_bfcl import Reference
from tunesmith.evaluate.client import Answer, ToolCall
from tunesmith.evaluate.function_calls import FunctionCalls
from tunesmith.evaluate.task import Item, Transcript
from tunesmith.recipe.schema import FunctionCallTask

PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "degrees": {"type": "number"},
    "metric": {"type": ["boolean", "null"]},
    "tags": {"type": "array", "items": {"type": "string"}},
    "place": {"type": "object", "properties": {"zip": {"type": "string"}}},
    "stops": {"type": "array", "items": {"type": "object"}},
    "open": {},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": PROPERTIES, "required": ["city"]},
    },
}
OTHER = {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}}


def verdict(expected: dict[str, Any], given: dict[str, Any]) -> str:
    reference = Reference([Call("weather", expected)], (TOOL, OTHER))
    assert reference.can_judge
    found = reference.verdict([Call("weather", given)])
    assert found.valid == (not found.error_type)
    return found.error_type


@pytest.mark.parametrize(
    ("expected", "given", "error_type"),
    [
        ({"city": "New York, NY"}, {"city": "new york ny"}, ""),
        ({"city": "Rome"}, {"city": "Rom"}, "value_error:string"),
        ({"city": "Rome", "days": 3}, {"city": "Rome", "days": 3.0}, "type_error:simple"),
        ({"city": "Rome", "days": 3}, {"city": "Rome", "days": "3"}, "type_error:simple"),
        ({"city": "Rome", "degrees": 3.0}, {"city": "Rome", "degrees": 3}, ""),
        ({"city": "Rome", "degrees": 3}, {"city": "Rome", "degrees": 3}, ""),
        ({"city": "Rome", "metric": True}, {"city": "Rome", "metric": 1}, "type_error:simple"),
        ({"city": "Rome", "metric": None}, {"city": "Rome", "metric": None}, ""),
        ({"city": "Rome", "tags": ["A b", "c"]}, {"city": "Rome", "tags": ["ab", "C"]}, ""),
        ({"city": "Rome", "tags": ["a", "b"]}, {"city": "Rome", "tags": ["b", "a"]}, "value_error:list/tuple"),
        ({"city": "Rome", "place": {"zip": "00 100"}}, {"city": "Rome", "place": {"zip": "00100"}}, ""),
        ({"city": "Rome", "place": {"zip": "1"}}, {"city": "Rome", "place": {"zip": "2"}}, "value_error:dict_value"),
        ({"city": "Rome", "place": {"zip": "1"}}, {"city": "Rome", "place": {"zap": "1"}}, "value_error:dict_key"),
        ({"city": "Rome", "stops": [{"a": 1}]}, {"city": "Rome", "stops": [{"a": 1}]}, ""),
        ({"city": "Rome", "stops": [{"a": 1}]}, {"city": "Rome", "stops": []}, "value_error:list_dict_count"),
        ({"city": "Rome", "open": [1, 2]}, {"city": "Rome", "open": [1, 2]}, ""),
        ({"city": "Rome", "undeclared": 1}, {"city": "Rome", "undeclared": 1}, ""),
        ({"city": "Rome"}, {}, "simple_function_checker:missing_required"),
        ({"city": "Rome", "days": 3}, {"city": "Rome"}, "simple_function_checker:missing_optional"),
        ({"city": "Rome"}, {"city": "Rome", "days": 3}, "simple_function_checker:unexpected_param"),
        ({"city": "Rome"}, {"city": "Rome", "invented": 3}, "simple_function_checker:unexpected_param"),
    ],
)
def test_verdicts(expected: dict[str, Any], given: dict[str, Any], error_type: str) -> None:
    assert verdict(expected, given) == error_type


def test_several_calls_in_any_order_and_other_functions() -> None:
    expected = [Call("weather", {"city": "Rome"}), Call("stop", {})]
    reference = Reference(expected, (TOOL, OTHER))
    assert reference.can_judge and reference.verdict(expected[::-1]).valid
    assert reference.verdict(expected[:1]).error_type == "parallel_function_checker_no_order:wrong_count"
    assert not reference.verdict([expected[0], expected[0]]).valid
    one = Reference([Call("stop", {})], (TOOL, OTHER))
    assert one.verdict([Call("weather", {"city": "Rome"})].copy()).error_type.endswith("wrong_func_name")
    assert Reference([Call("undeclared", {"a": 1})], ()).verdict([Call("undeclared", {"a": 1})]).valid


def test_rows_that_contradict_their_declarations_are_not_judged() -> None:
    assert not Reference([Call("weather", {"days": 3})], (TOOL,)).can_judge  # `city` is required
    for broken in ({}, {"function": None}, {"function": {"name": "weather", "parameters": []}}):
        assert Reference([Call("weather", {"city": "Rome"})], (broken,)).can_judge


def test_the_metric_stands_beside_the_strict_one() -> None:
    def judged(expected: list[Call], *given: tuple[str, dict[str, Any]], error: str = "") -> dict[str, float]:
        item = Item("i", (), (TOOL,), 8, expected, "")
        calls = tuple(ToolCall(name, json.dumps(arguments)) for name, arguments in given)
        return FunctionCalls(FunctionCallTask(())).judge(item, Transcript((Answer("", calls, error=error),))).scores

    rome = [Call("weather", {"city": "Rome"})]
    assert (judged(rome, ("weather", {"city": "rome"})))["bfcl_accuracy"] == 1.0
    assert (judged(rome, ("weather", {"city": "rome"})))["accuracy"] == 0.0
    assert judged(rome, error="timeout")["bfcl_accuracy"] == 0.0
    assert judged([], ("weather", {"city": "Rome"}))["bfcl_accuracy"] == 0.0 and judged([])["bfcl_accuracy"] == 1.0
    assert "bfcl_accuracy" not in judged([Call("weather", {"days": 3})], ("weather", {"days": 3}))
