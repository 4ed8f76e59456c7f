"""Function calls as code that people read: one argument per line, those that differ from the reference marked."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

_CALL = re.compile(r"([\w.\-]{1,200})\((\{.*\})\)", re.DOTALL)
_WRAPPED = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_MAX_CHARACTERS = 20_000


def lay_out(text: str) -> list[str] | None:
    """Return the lines of a text that is made of calls, or None when it holds anything else.

    Read are `name({"argument": value})`, one per line; JSON, a call or a list of calls, each with `name` and
    `arguments`, bare or between `<tool_call>` tags; and Python, `[name(argument=value)]`, which is parsed, never run.
    """
    if len(text) > _MAX_CHARACTERS:
        return None
    for read in (_from_json, _from_lines, _from_python):
        try:
            calls = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if calls:
            return [line for name, arguments in calls for line in _lines(name, arguments)]
    return None


def _from_lines(text: str) -> list[tuple[str, dict[str, Any]]]:
    calls = []
    for line in text.splitlines():
        match = _CALL.fullmatch(line.strip())
        if match is None:
            raise ValueError("not a call")
        calls.append((match.group(1), _mapping(json.loads(match.group(2)))))
    return calls


def _from_json(text: str) -> list[tuple[str, dict[str, Any]]]:
    wrapped = _WRAPPED.findall(text)
    if wrapped and not _WRAPPED.sub("", text).strip():
        documents = [json.loads(inside) for inside in wrapped]
    else:
        document = json.loads(text)
        documents = document if isinstance(document, list) else [document]
    calls = []
    for call in documents:
        arguments = _mapping(call).get("arguments", {})
        calls.append((str(call["name"]) if "name" in call else _refuse(), _mapping(arguments)))
    return calls


def _from_python(text: str) -> list[tuple[str, dict[str, Any]]]:
    tree = ast.parse(text.strip(), mode="eval").body
    calls = []
    for call in tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]:
        if not isinstance(call, ast.Call):
            raise ValueError("not a call")
        given = {str(number + 1): value for number, value in enumerate(call.args)}
        given |= {str(keyword.arg): keyword.value for keyword in call.keywords}
        calls.append((ast.unparse(call.func), {name: _value(node) for name, node in given.items()}))
    return calls


def _value(node: ast.expr) -> Any:
    """Return a literal's value, and any other expression as its text."""
    try:
        value = ast.literal_eval(node)
        json.dumps(value)
    except (ValueError, TypeError):
        return ast.unparse(node)
    return value


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else _refuse()


def _refuse() -> Any:
    raise ValueError("not a call")


def _lines(name: str, arguments: dict[str, Any]) -> list[str]:
    if not arguments:
        return [f"{name}()"]
    shown = [f"  {key} = {json.dumps(value, ensure_ascii=False)}" for key, value in sorted(arguments.items())]
    return [f"{name}(", *shown, ")"]
