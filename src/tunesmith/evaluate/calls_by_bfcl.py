"""The user's own tool conversations, judged by BFCL's checker: the same rules for strings, types and order of calls.

A tool declared in JSON Schema becomes a function as BFCL describes it, and every expected argument a parameter with
one alternative. So strings are compared without regard to case and some punctuation, whole numbers stand for floats,
types follow the declaration, and calls of one turn are matched in any order, as `bfcl/checking.py` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.evaluate.bfcl.checking import Rules, check
from tunesmith.evaluate.bfcl.verdicts import Verdict
from tunesmith.evaluate.calls import Call

_KINDS = {
    "string": "string",
    "integer": "integer",
    "number": "float",
    "float": "float",
    "boolean": "boolean",
    "array": "array",
    "object": "dict",
    "dict": "dict",
}
_KINDS_OF_VALUES: dict[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "float",
    str: "string",
    list: "array",
    dict: "dict",
}


class Reference:
    """The expected calls of one turn as BFCL's checker reads them.

    Args:
        expected: at least one call.
        tools: the conversation's declarations.
    """

    def __init__(self, expected: Sequence[Call], tools: Sequence[Mapping[str, Any]]) -> None:
        assert expected, "a turn without an expected call is judged by whether there is a call at all"
        declared = {str(_function(tool).get("name")): _schema(tool) for tool in tools}
        names = list(dict.fromkeys([*declared, *(call.name for call in expected)]))
        self._functions = [_described(name, declared.get(name, {}), expected) for name in names]
        self._truth = [
            {call.name: {key: [_truth(value)] for key, value in call.arguments.items()}} for call in expected
        ]
        self._category = "parallel_multiple" if len(expected) > 1 else "multiple"
        self.can_judge = self.verdict(expected).valid

    def verdict(self, given: Sequence[Call]) -> Verdict:
        """Return the checker's verdict on the calls of an answer.

        It means nothing where `can_judge` is false: there the checker refuses the expected calls themselves, because
        the row contradicts its own declarations.
        """
        calls = [{call.name: dict(call.arguments)} for call in given]
        return check(self._category, self._functions, self._truth, calls, Rules())


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function", tool)
    return function if isinstance(function, Mapping) else {}


def _schema(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    schema = _function(tool).get("parameters")
    return schema if isinstance(schema, Mapping) else {}


def _described(name: str, schema: Mapping[str, Any], expected: Sequence[Call]) -> dict[str, Any]:
    """Return a function as BFCL describes it; what its declaration leaves open follows from the expected values."""
    declared = schema.get("properties")
    properties = dict(declared) if isinstance(declared, Mapping) else {}
    values = {key: value for call in expected if call.name == name for key, value in call.arguments.items()}
    described = {key: _parameter(properties.get(key), values.get(key)) for key in dict.fromkeys([*properties, *values])}
    required = schema.get("required")
    listed = [str(key) for key in required] if isinstance(required, list) else []
    return {"name": name, "parameters": {"properties": described, "required": listed}}


def _parameter(declared: Any, value: Any) -> dict[str, Any]:
    kind = _kind(declared, value)
    if kind != "array":
        return {"type": kind}
    items = declared.get("items") if isinstance(declared, Mapping) else None
    first = value[0] if isinstance(value, list) and value else None
    return {"type": kind, "items": {"type": _kind(items, first)}}


def _kind(declared: Any, value: Any) -> str:
    """Return BFCL's name of a declared type; of the value's where the declaration has none or several."""
    kind = declared.get("type") if isinstance(declared, Mapping) else None
    if isinstance(kind, list):
        named = [entry for entry in kind if entry != "null"]
        kind = named[0] if len(named) == 1 else None
    if isinstance(kind, str) and kind in _KINDS:
        return _KINDS[kind]
    return _KINDS_OF_VALUES.get(type(value), "any")


def _truth(value: Any) -> Any:
    """Return an expected value as an alternative: in objects, every key has alternatives of its own."""
    if isinstance(value, dict):
        return {key: [item] for key, item in value.items()}
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [{key: [entry] for key, entry in item.items()} for item in value]
    return value
