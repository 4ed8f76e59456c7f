"""Turn Java and JavaScript source text of an argument into the value it stands for.

The official converters are regular expressions, and their quirks decide verdicts: what does not match stays a string,
commas inside strings split, nested objects break. They are repeated as they are
(`bfcl_eval/eval_checker/ast_eval/type_convertor`, gorilla at 6ea5797).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_INTEGER = re.compile(r"-?\d+$")
_LONG = re.compile(r"-?\d+[lL]$")
_FLOAT = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?[fF]$")
_DOUBLE = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?$")


_MOST_CHARACTERS, _MOST_SPACES = 10_000, re.compile(r"\s{65}")


class NotConvertible(ValueError):
    """A type for which the official converter has no conversion, or a text too long for its expressions."""


def _bounded(text: str) -> str:
    """Return the text if the expressions below cannot spend long on it: some of them backtrack.

    Raises:
        NotConvertible: it is far beyond anything that stands for an argument.
    """
    if len(text) > _MOST_CHARACTERS or _MOST_SPACES.search(text):
        raise NotConvertible("an argument too long or too spacious to be read")
    return text


def java_value(text: str, kind: str, element: str | None = None) -> Any:
    """Return a Java argument's value.

    Args:
        text: its source.
        kind: the parameter's type in the function's description.
        element: type of the elements of an `Array` or `ArrayList`.

    Raises:
        NotConvertible: sets, hash tables, queues and stacks.
        ValueError: an integer of thousands of digits.
    """
    if kind == "ArrayList":
        return _array_list(_bounded(text), element)
    if kind == "Array":
        return _array(_bounded(text), element)
    if kind == "HashMap":
        return _hash_map(_bounded(text))
    convert = _JAVA.get(kind)
    if convert is None:
        raise NotConvertible(f"a Java {kind} cannot be read")
    return convert(text)


def _matching(pattern: re.Pattern[str], convert: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: convert(text) if pattern.match(text) else text


def _truth(text: str) -> Any:
    return text == "true" if text in ("true", "false") else text


def _unchanged(text: str) -> str:
    return text


_JAVA: dict[str, Callable[[str], Any]] = {
    "byte": _matching(_INTEGER, int),
    "short": _matching(_INTEGER, int),
    "integer": _matching(_INTEGER, int),
    "long": _matching(_LONG, lambda text: int(re.sub(r"[lL]$", "", text))),
    "float": _matching(_FLOAT, lambda text: float(re.sub(r"[fF]$", "", text))),
    "double": _matching(_DOUBLE, float),
    "boolean": _truth,
    "char": _unchanged,  # the official expression for a character matches none
    "String": _unchanged,
    "any": _unchanged,
}

_AS_LIST = re.compile(r"new\s+ArrayList<\w*>\(Arrays\.asList\((.+?)\)\)")
_ADDED = re.compile(r"new\s+ArrayList<\w*>\(\)\s*\{\{\s*(.+?)\s*\}\}", re.DOTALL)
_ADD = re.compile(r"add\((.+?)\)")
_EMPTY_LIST = re.compile(r"new\s+ArrayList<\w*>\(\)")
_ARRAY = re.compile(r"new\s+\w+\[\]\s*\{(.*?)\}")
_HASH_MAP = re.compile(r"new\s+HashMap<.*?>\s*\(\)\s*\{\s*\{?\s*(.*?)\s*\}?\s*\}", re.DOTALL)
_PUT = re.compile(r"put\(\"(.*?)\",\s*(.*?)\)")
# What ends with braces is searched up to the last ones only: a start that cannot be closed is not tried at all.
_EMPTY_MAP = re.compile(r"new\s+HashMap<.*?>\s*\(\)")


def _array_list(text: str, element: str | None) -> Any:
    listed = _AS_LIST.search(text)
    if listed:
        return [_list_element(part.strip(), element) for part in listed.group(1).split(",")]
    added = _ADDED.search(text, 0, text.rfind("}}") + 2)
    if added:
        return [_list_element(part.strip(), element) for part in _ADD.findall(added.group(1))]
    return [] if _EMPTY_LIST.search(text) else text


def _list_element(text: str, element: str | None) -> Any:
    if element in ("char", "String"):
        return text[1:-1]
    return java_value(text, element) if element else _guessed_java_value(text)


def _array(text: str, element: str | None) -> Any:
    listed = _ARRAY.search(text)
    if listed is None:
        return text
    parts = [part.strip() for part in listed.group(1).split(",") if part.strip()]
    return [java_value(part, element) if element else _guessed_java_value(part) for part in parts]


def _hash_map(text: str) -> Any:
    filled = _HASH_MAP.search(text, 0, text.rfind("}") + 1)
    if filled:
        inside = filled.group(1)
        pairs = _PUT.findall(inside) if inside.strip() else []
        return {key: _guessed_java_value(value.strip()) for key, value in pairs}
    return {} if _EMPTY_MAP.search(text) else text


def _guessed_java_value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if text.startswith('"') and text.endswith('"'):
        return text[1:-1]
    if _LONG.match(text):
        return int(text[:-1])
    if _FLOAT.match(text):
        return float(re.sub(r"[fF]$", "", text))
    return _number(text)


def _number(text: str) -> Any:
    """Return an integer or a float when the text is one to Python, the text otherwise."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


_DECIMAL = re.compile(r"-?\d+(\.\d+)?$")
_BIGINT = re.compile(r"-?\d+n$")


def javascript_value(text: str, kind: str, element: str | None = None) -> Any:
    """Return a JavaScript argument's value; see `java_value`.

    Raises:
        NotConvertible: a type the official converter does not know.
        ValueError: an integer of thousands of digits.
    """
    if kind in ("array", "dict"):
        return _javascript_collection(_bounded(text), kind, element)
    convert = _JAVASCRIPT.get(kind)
    if convert is None:
        raise NotConvertible(f"a JavaScript {kind} cannot be read")
    return convert(text)


def _is_quoted(text: str) -> bool:
    return any(text.startswith(quote) and text.endswith(quote) for quote in "\"'")


def _unquoted(text: str) -> str:
    return text[1:-1] if _is_quoted(text) else text


_JAVASCRIPT: dict[str, Callable[[str], Any]] = {
    "String": _unquoted,
    "integer": _matching(_INTEGER, int),
    "float": _matching(_DECIMAL, float),
    "Bigint": _matching(_BIGINT, lambda text: int(text[:-1])),
    "Boolean": _truth,
    "any": _unchanged,
}

_ARRAY_2D_START = re.compile(r"(\[|\bnew\s+Array\()\s*\[")
_NEXT_ROW = re.compile(r"\s*,\s*\[")
_ROWS_END = re.compile(r"\s*([\])])")
_ARRAY_1D = re.compile(r"\[(.*?)\]|\bnew\s+Array\((.*?)\)")
_INNER_ARRAY = re.compile(r"\[(.*?)\]")
_OBJECT = re.compile(r"\{(.*?)\}")
_PAIR = re.compile(r"([^:]+):\s*(.*?)(?:,\s*(?=[^,]+:)|$)")


def _javascript_collection(text: str, kind: str, element: str | None = None) -> Any:
    text = text.strip()
    if kind == "array":
        try:
            return _javascript_array(text, element)
        except ValueError:  # the official converter gives up on the whole array, too
            return text
    if text == "{}":
        return {}
    found = _OBJECT.match(text)
    if found is None:
        return text
    try:
        return {key.strip().strip("'\""): _property(value.strip()) for key, value in _PAIR.findall(found.group(1))}
    except ValueError:
        return text


def _javascript_array(text: str, element: str | None) -> Any:
    rows = _two_dimensional(text)
    if rows:
        return [_inner_array(part, index) for index, part in enumerate(_INNER_ARRAY.findall(rows))]
    flat = _ARRAY_1D.match(text)
    if flat is None:
        return text
    inside = (flat.group(1) if flat.group(1) is not None else flat.group(2)).strip()
    parts = [part.strip() for part in inside.split(",")] if inside else []
    return [_array_element(part, element) if element else _guessed_javascript_value(part) for part in parts]


def _two_dimensional(text: str) -> str:
    r"""Return what matches `\\[\\s*\\[.*?\\]\\s*(,\\s*\\[.*?\\]\\s*)*\\]` or its twin with `new Array(…)` at the start.

    Backtracking over `.*?` takes exponential time where rows do not end well. Seen from the right, a `]` is good when
    the array's end follows it, or another row whose nearest good `]` stands on the same line; `.*?` takes the nearest.
    """
    start = _ARRAY_2D_START.match(text)
    if start is None:
        return ""
    closing = "]" if start.group(1) == "[" else ")"
    good = end = -1  # the nearest good bracket to the right, and where the array ends from there
    at = text.rfind("]")
    while at >= start.end():
        row, last = _NEXT_ROW.match(text, at + 1), _ROWS_END.match(text, at + 1)
        if row and good >= 0 and text.find("\n", row.end(), good) < 0:
            good = at
        elif last and last.group(1) == closing:
            good, end = at, last.end()
        at = text.rfind("]", 0, at)
    reached = good >= 0 and text.find("\n", start.end(), good) < 0
    return text[:end] if reached else ""


def _inner_array(text: str, index: int) -> list[Any]:
    text = text.strip()
    if index == 0 and text.startswith("["):
        text = text[1:]
    return [_guessed_javascript_value(part.strip()) for part in text.split(",")]


def _array_element(text: str, element: str) -> Any:
    return javascript_value(text, element, "String" if text.startswith(("'", '"')) else None)


def _property(text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        return _javascript_collection(text, "array")
    if text.startswith("{") and text.endswith("}"):
        return _javascript_collection(text, "dict")
    return _guessed_javascript_value(text.strip("'\""))


def _guessed_javascript_value(text: str) -> Any:
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    return text[1:-1] if _is_quoted(text) else _number(text)
