"""From what a model wrote to calls: `[{function name: {argument: value}}, …]`, in any of the notations BFCL asks for.

A text that is no call in its notation raises `Undecodable`. A text that can be read but is not a list of calls comes
back as what it is; `is_list_of_calls` tells. Sources: `bfcl_eval/model_handler/utils.py` (`ast_parse`), the parsers
beside it, and the handlers of OpenAI's API and of Qwen, gorilla at 6ea5797.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any, Literal

from tunesmith.evaluate.bfcl.python_calls import MOST_CHARACTERS, Undecodable, check_brackets, read_calls
from tunesmith.evaluate.bfcl.tree_calls import read_java_call, read_javascript_call
from tunesmith.tokens.tool_calls import parse_tool_calls

Notation = Literal["python", "java", "javascript", "json", "verbose_xml", "concise_xml"]
Protocol = Literal["prompt", "fc-openai-tools", "fc-native-template"]


def decode_text(text: Any, notation: Notation = "python", *, tagged: bool = False) -> Any:
    """Return the calls of an answer to a prompt that asks for them in a notation.

    Args:
        text: the answer; anything but a string is undecodable.
        notation: what the prompt asked for.
        tagged: the calls stand between `<TOOLCALL>` and `</TOOLCALL>`.

    Raises:
        Undecodable: the text is something else.
        EnvironmentProblem: Java or JavaScript, and tree-sitter is not installed.
    """
    if not isinstance(text, str):
        raise Undecodable(f"the answer is no text but {type(text).__name__}")
    if len(text) > MOST_CHARACTERS:
        raise Undecodable(f"{len(text):,} characters are more than any answer has")
    text = text.strip("`\n ")
    if not text.startswith("["):
        text = f"[{text}"
    if not text.endswith("]"):
        text = f"{text}]"
    if tagged:
        text = _between(text, "<TOOLCALL>", "</TOOLCALL>").strip()
    return _READERS[notation](text)


def decode_openai_calls(response: Any) -> Any:
    """Return the calls of an answer over the chat-completions API.

    Args:
        response: `[{name: arguments as JSON text}]` (the official result files) or the API's own `tool_calls`.

    Raises:
        Undecodable: the answer holds text instead of calls, or arguments that are no JSON.
    """
    if response == "":
        return []
    if not isinstance(response, list):
        raise Undecodable("the answer holds text instead of tool calls")
    calls = []
    for entry in response:
        name, arguments = _name_and_arguments(entry)
        if not isinstance(arguments, str):
            raise Undecodable(f"the arguments of {name!r} are no JSON text")
        calls.append({name: _json(arguments)})
    return calls


def decode_native(response: Any) -> Any:
    """Return the calls that stand in a text the way the model's own chat template writes them; there may be none.

    Raises:
        Undecodable: the answer is no text, or too long.
    """
    if not isinstance(response, str):
        raise Undecodable(f"the answer is no text but {type(response).__name__}")
    if len(response) > MOST_CHARACTERS:
        raise Undecodable(f"{len(response):,} characters are more than any answer has")
    _, calls = parse_tool_calls(response)
    return [{call["name"]: call["arguments"]} for call in calls]


def decode(response: Any, protocol: Protocol, notation: Notation = "python") -> Any:
    """Return the calls of an answer under a protocol; `notation` concerns `prompt` only.

    Raises:
        Undecodable: the answer is something else.
    """
    if protocol == "fc-openai-tools":
        return decode_openai_calls(response)
    if protocol == "fc-native-template":
        return decode_native(response)
    return decode_text(response, notation)


def is_list_of_calls(decoded: Any) -> bool:
    """Return whether something decoded is a list of mappings with one function name and its arguments each."""
    return type(decoded) is list and all(
        type(call) is dict and len(call) == 1 and type(next(iter(call.values()))) is dict for call in decoded
    )


def _between(text: str, opening: str, closing: str) -> str:
    start = text.find(opening)
    end = text.find(closing, start + len(opening)) if start >= 0 else -1
    if end < 0:
        raise Undecodable(f"no {opening} … {closing}")
    return text[start + len(opening) : end]


def _name_and_arguments(entry: Any) -> tuple[Any, Any]:
    if isinstance(entry, dict) and isinstance(entry.get("function"), dict):
        return entry["function"].get("name"), entry["function"].get("arguments")
    if isinstance(entry, dict) and entry:
        return next(iter(entry.items()))
    raise Undecodable(f"no tool call: {str(entry)[:100]}")


def _json(text: str) -> Any:
    if len(text) > MOST_CHARACTERS:
        raise Undecodable(f"{len(text):,} characters are more than any call has")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Undecodable(f"no JSON: {error}"[:300]) from None


def _read_json(text: str) -> Any:
    """Read `[{"function": …, "parameters": {…}}]`; a text that is no JSON holds no call."""
    start, end = text.find("["), text.rfind("]")
    if 0 <= start < end:
        text = text[start : end + 1]
    text = _list_of_objects(text) or text
    try:
        entries = json.loads(text)
    except json.JSONDecodeError:
        return []
    except (ValueError, RecursionError) as error:
        raise Undecodable(f"no JSON: {error}"[:300]) from None
    if not isinstance(entries, list | dict | str):
        raise Undecodable("no list of calls")
    calls = []
    for entry in entries:
        if isinstance(entry, dict):
            if "function" not in entry or "parameters" not in entry or isinstance(entry["function"], list | dict):
                raise Undecodable("a call needs `function` and `parameters`")
            calls.append({entry["function"]: entry["parameters"]})
    return calls


_LIST_START = re.compile(r"\[\s*{")
_LIST_END = re.compile(r"}\s*\]")


def _list_of_objects(text: str) -> str:
    r"""Return what the regular expression `\[\s*{.*?}\s*(?:,\s*{.*?}\s*)*\]` finds, in linear time.

    The official decoder searches with that expression, whose backtracking takes exponential time on a list that does
    not end well. `.*?` may cross braces, so it matches from the first `[{` to the first `}]` behind it.
    """
    start = _LIST_START.search(text)
    end = _LIST_END.search(text, start.end()) if start else None
    return text[start.start() : end.end()] if start and end else ""


def _read_xml(text: str, read_parameters: Callable[[ElementTree.Element], dict[Any, Any]]) -> Any:
    inside = _between(text, "<functions>", "</functions>")
    try:
        # No document type can stand inside an element, so there are no entities to expand.
        root = ElementTree.fromstring(f"<functions>{inside}</functions>")
        return [{function.attrib["name"]: read_parameters(function)} for function in root.findall("function")]
    except Undecodable:
        raise
    except (ElementTree.ParseError, LookupError, ValueError, TypeError, SyntaxError) as error:
        raise Undecodable(f"{type(error).__name__}: {error}"[:300]) from None
    except (RecursionError, MemoryError) as error:
        raise Undecodable(type(error).__name__) from None


def _verbose_parameters(function: ElementTree.Element) -> dict[Any, Any]:
    container = function.find("params")
    parameters = (function if container is None else container).findall("param")
    return {p.attrib.get("name"): _typed(p.attrib.get("value", ""), p.attrib.get("type", "string")) for p in parameters}


def _concise_parameters(function: ElementTree.Element) -> dict[Any, Any]:
    return {
        p.attrib["name"]: _typed((p.text or "").strip(), p.attrib.get("type", "string"))
        for p in function.findall("param")
    }


def _typed(text: str, kind: str) -> Any:
    """Return a parameter's value by its `type` attribute; an unknown type leaves it a string."""
    if kind == "integer":
        return int(text)
    if kind == "float":
        return float(text)
    if kind == "boolean":
        return text.lower() == "true"
    if kind == "null":
        return None
    if kind in ("array", "tuple", "object", "dict"):
        check_brackets(text)
        with warnings.catch_warnings():  # such as "invalid escape sequence"
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)  # literals only: it evaluates nothing
    return text


_READERS: dict[Notation, Callable[[str], Any]] = {
    "python": read_calls,
    "java": lambda text: read_java_call(text[1:-1]),
    "javascript": lambda text: read_javascript_call(text[1:-1]),
    "json": _read_json,
    "verbose_xml": lambda text: _read_xml(text, _verbose_parameters),
    "concise_xml": lambda text: _read_xml(text, _concise_parameters),
}
