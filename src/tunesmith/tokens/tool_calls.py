"""Finding function calls in what a model has written, whatever its family writes them like.

    Hermes, Qwen       <tool_call>{"name": …, "arguments": {…}}</tool_call>, once per call
    Mistral            [TOOL_CALLS][{"name": …, "arguments": {…}}, …]  or  [TOOL_CALLS]name[ARGS]{…}, repeated
    Llama 3            {"name": …, "parameters": {…}}, joined by `;`, <|python_tag|> before it or not
    Llama 3, custom    <function=name>{…}</function>
    Phi                <|tool_call|>[{…}, …]<|/tool_call|>  or  functools[{…}, …]
    plain              a JSON list of such objects, fenced or not, and nothing else

A call that is broken or cut off stays in the text. Nothing is ever evaluated; JSON is the only syntax read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

Call = dict[str, Any]  # {"name": str, "arguments": dict}

_MARKERS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<|tool_call|>", "<function=", "functools[")
_MARKER = re.compile("|".join(re.escape(marker) for marker in _MARKERS))
_MISTRAL_NAME = re.compile(r"\s*([\w.\-]+)\s*(?:\[CALL_ID\][\w\-]*\s*)?(?:\[ARGS\])?\s*(?=\{)")
_FENCE = re.compile(r"```(?:json)?\s*\n?(.*?)\n?\s*```", re.DOTALL)


def parse_tool_calls(text: str) -> tuple[str, list[Call]]:
    """Return the text without its calls, and the calls in order.

    A text without a call comes back as it is; around calls, white space before them is dropped.
    """
    calls: list[Call] = []
    pieces: list[str] = []
    kept = searched = 0
    while match := _MARKER.search(text, searched):
        found = _READERS[match.group()](text, match.end())
        if found is None:
            searched = match.end()
            continue
        pieces.append(text[kept : match.start()])
        calls += found[0]
        kept = searched = found[1]
    if not calls:
        whole = _whole_text(text)
        return ("", whole) if whole else (text, [])
    pieces.append(text[kept:])
    return "".join(piece.rstrip() for piece in pieces), calls


def certain_content(text: str) -> int:
    """Return how many characters of a growing text are content, however it goes on.

    What follows may yet turn out to be a call, or the white space before one.
    """
    start = text.lstrip()[:3]
    if not start or start[0] in "{[" or "```".startswith(start):
        return 0
    match = _MARKER.search(text)
    if match:
        return len(text[: match.start()].rstrip())
    end = len(text)
    for marker in _MARKERS:
        for length in range(min(len(marker) - 1, len(text)), 0, -1):
            if text.endswith(marker[:length]):
                end = min(end, len(text) - length)
                break
    return len(text[:end].rstrip())


def _read_tagged(close: str) -> Callable[[str, int], tuple[list[Call], int] | None]:
    """Return a reader of JSON between a marker and `close`, which may be missing at the end of the text."""

    def read(text: str, at: int) -> tuple[list[Call], int] | None:
        document, end = _json_at(text, at)
        calls = _calls_of(document)
        if calls is None:
            return None
        while (more := _skip(text, end)) < len(text) and text[more] == ";":
            document, after = _json_at(text, more + 1)
            further = _calls_of(document)
            if further is None:
                break
            calls, end = [*calls, *further], after
        after = _skip(text, end)
        if close and text.startswith(close, after):
            return calls, after + len(close)
        return calls, end

    return read


def _read_mistral(text: str, at: int) -> tuple[list[Call], int] | None:
    match = _MISTRAL_NAME.match(text, at)
    if not match:
        return _read_tagged("")(text, at)
    arguments, end = _json_at(text, match.end())
    return ([{"name": match.group(1), "arguments": arguments}], end) if isinstance(arguments, dict) else None


def _read_function_tag(text: str, at: int) -> tuple[list[Call], int] | None:
    name, bracket, _ = text[at:].partition(">")
    arguments, end = _json_at(text, at + len(name) + 1)
    if not bracket or not re.fullmatch(r"[\w.\-]+", name) or not isinstance(arguments, dict):
        return None
    after = _skip(text, end)
    close = "</function>"
    return [{"name": name, "arguments": arguments}], after + len(close) if text.startswith(close, after) else end


def _read_functools(text: str, at: int) -> tuple[list[Call], int] | None:
    return _read_tagged("")(text, at - 1)


_READERS: dict[str, Callable[[str, int], tuple[list[Call], int] | None]] = {
    "<tool_call>": _read_tagged("</tool_call>"),
    "[TOOL_CALLS]": _read_mistral,
    "<|python_tag|>": _read_tagged(""),
    "<|tool_call|>": _read_tagged("<|/tool_call|>"),
    "<function=": _read_function_tag,
    "functools[": _read_functools,
}


def _whole_text(text: str) -> list[Call] | None:
    """Read a text that is nothing but calls as JSON; ordinary JSON answers are left alone."""
    stripped = text.strip()
    fenced = _FENCE.fullmatch(stripped)
    body = fenced.group(1).strip() if fenced else stripped
    if not body.startswith(("{", "[")):
        return None
    found = _read_tagged("")(body, 0)
    return found[0] if found is not None and not body[found[1] :].strip(" ;\n\t") else None


def _calls_of(document: Any) -> list[Call] | None:
    """Return the calls that a JSON value stands for, or None when it is something else."""
    if isinstance(document, list):
        calls = [_call_of(item) for item in document]
        return [call for call in calls if call] if calls and all(calls) else None
    call = _call_of(document)
    return [call] if call else None


def _call_of(document: Any) -> Call | None:
    if not isinstance(document, dict):
        return None
    if isinstance(document.get("function"), dict):
        document = document["function"]
    name = document.get("name")
    key = next((key for key in ("arguments", "parameters") if key in document), None)
    if not isinstance(name, str) or not name or key is None:
        return None
    arguments = document[key]
    if isinstance(arguments, str):
        arguments, end = _json_at(arguments, 0)
        if arguments is not None and document[key][end:].strip():
            return None
    elif arguments is None:
        arguments = {}
    return {"name": name, "arguments": arguments} if isinstance(arguments, dict) else None


def _json_at(text: str, at: int) -> tuple[Any, int]:
    """Return the JSON value that begins at a position and where it ends; (None, at) when there is none."""
    try:
        value, end = _DECODER.raw_decode(text, _skip(text, at))
    except (ValueError, RecursionError):
        return None, at
    return value, end


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
