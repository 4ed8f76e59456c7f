"""Function calls as code that people read: one argument per line, those that differ from the reference marked."""

from __future__ import annotations

import json
import re
from typing import Any

_CALL = re.compile(r"([\w.\-]{1,200})\((\{.*\})\)", re.DOTALL)
_MAX_CHARACTERS = 20_000


def lay_out(text: str) -> list[str] | None:
    """Return the lines of a text that is made of calls, or None when it holds anything else.

    Read are `name({"argument": value})`, one per line, and JSON: a call or a list of calls, each with `name` and
    `arguments`.
    """
    if len(text) > _MAX_CHARACTERS:
        return None
    try:
        calls = _from_json(text) if text[:1] in ("[", "{") else _from_lines(text)
    except (ValueError, RecursionError):
        return None
    return [line for name, arguments in calls for line in _lines(name, arguments)] if calls else None


def _from_lines(text: str) -> list[tuple[str, dict[str, Any]]]:
    calls = []
    for line in text.splitlines():
        match = _CALL.fullmatch(line.strip())
        if match is None:
            raise ValueError("not a call")
        calls.append((match.group(1), _mapping(json.loads(match.group(2)))))
    return calls


def _from_json(text: str) -> list[tuple[str, dict[str, Any]]]:
    document = json.loads(text)
    calls = []
    for call in document if isinstance(document, list) else [document]:
        arguments = _mapping(call).get("arguments", {})
        calls.append((str(call["name"]) if "name" in call else _refuse(), _mapping(arguments)))
    return calls


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else _refuse()


def _refuse() -> Any:
    raise ValueError("not a call")


def _lines(name: str, arguments: dict[str, Any]) -> list[str]:
    if not arguments:
        return [f"{name}()"]
    shown = [f"  {key} = {json.dumps(value, ensure_ascii=False)}" for key, value in sorted(arguments.items())]
    return [f"{name}(", *shown, ")"]


def differing(lines: list[str], reference: list[str]) -> list[bool]:
    """Return which lines do not stand in the reference, each of whose lines counts once."""
    left = list(reference)
    marks = []
    for line in lines:
        marks.append(line not in left)
        if line in left:
            left.remove(line)
    return marks
