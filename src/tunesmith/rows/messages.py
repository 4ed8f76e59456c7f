"""Messages and tool declarations, in every spelling that data sets use, to one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tunesmith.rows.conversation import Message, Tool

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
}
_PLAIN_ROLES = ("user", "assistant", "system")
_CALL_ROLES = ("function_call", "tool_call")
_KEPT = ("name", "tool_call_id", "reasoning_content")


class BadShape(Exception):
    """A row that does not fit its format; the text says why, in a sentence without a full stop."""


def read_messages(given: Any, *, begins_inside: bool = False) -> list[Message]:
    """Return messages with roles, content and calls in one spelling.

    Args:
        given: a list of `{role, content}` or `{from, value}`, or its JSON text.
        begins_inside: the messages continue others, so a tool result may come first.

    Raises:
        BadShape: they are not messages, or their order makes no sense.
    """
    try:
        listed = _from_json(given) if isinstance(given, str) else given
    except BadShape as problem:
        raise BadShape(f"the text of the messages {problem}") from None
    if not isinstance(listed, list | tuple):
        raise BadShape("the messages are not a list")
    if not listed:
        raise BadShape("the list of messages is empty")
    messages = [_message(item, f"message {number}") for number, item in enumerate(listed, 1)]
    _check_order(messages, begins_inside)
    return messages


def require_answer(messages: Sequence[Message]) -> None:
    """Check that there is something to learn, and something to learn it from.

    Raises:
        BadShape: no message is an assistant's, or all are.
    """
    if not any(message["role"] == "assistant" for message in messages):
        raise BadShape("no message is an assistant's")
    if all(message["role"] == "assistant" for message in messages):
        raise BadShape("every message is an assistant's")


def read_tools(given: Any) -> tuple[Tool, ...]:
    """Return tool declarations in OpenAI's form; flat ones (`{name, parameters}`) are wrapped.

    Args:
        given: a list, its JSON text, or nothing.

    Raises:
        BadShape: a declaration has no name, or its parameters are not a JSON schema object.
    """
    if given is None or (isinstance(given, str) and not given.strip()):
        return ()
    try:
        listed = _from_json(given) if isinstance(given, str) else given
    except BadShape as problem:
        raise BadShape(f"the text of the tools {problem}") from None
    if not isinstance(listed, list | tuple):
        raise BadShape("the tools are not a list")
    return tuple(_tool(item, f"tool {number}") for number, item in enumerate(listed, 1))


def _tool(item: Any, where: str) -> Tool:
    if isinstance(item, str):
        item = _from_json(item)
    if not isinstance(item, dict):
        raise BadShape(f"{where} is not an object")
    function = item.get("function", item)
    if not isinstance(function, dict):
        raise BadShape(f"{where}: its function is not an object")
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise BadShape(f"{where} has no name")
    parameters = function.get("parameters")
    if isinstance(parameters, str):
        parameters = _from_json(parameters)
    if parameters is not None and not isinstance(parameters, dict):
        raise BadShape(f"{where} ({name}): its parameters are not an object")
    declared = {
        "name": name,
        "description": function.get("description") or "",
        "parameters": parameters or {"type": "object", "properties": {}},
    }
    rest = {key: value for key, value in function.items() if key not in (*declared, "type") and value is not None}
    return {"type": "function", "function": declared | rest}


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise BadShape(f"{where} is not an object")
    if len(item) == 2 and item.get("role") in _PLAIN_ROLES:  # by far the most frequent: nothing to translate
        text = item.get("content")
        if isinstance(text, str) and text.strip():
            return {"role": item["role"], "content": text}
    said = item.get("role", item.get("from"))
    if not isinstance(said, str):
        raise BadShape(f"{where} has no role")
    role = _ROLES.get(said.strip().lower())
    if role is None:
        raise BadShape(f"{where} has the unknown role {said!r}")
    where = f"{where} ({said})"
    content = item["content"] if "content" in item else item.get("value")
    if said in _CALL_ROLES and not item.get("tool_calls"):
        return {"role": "assistant", "content": "", "tool_calls": _calls(content, where)}
    message: Message = {"role": role, "content": _content(content, role, where)}
    message |= {key: item[key] for key in _KEPT if isinstance(item.get(key), str)}
    if role == "assistant":
        calls = item.get("tool_calls")
        legacy = item.get("function_call")
        if calls or legacy:
            message["tool_calls"] = _calls(calls or [legacy], where)
    if not message["content"].strip() and role != "tool" and "tool_calls" not in message:
        raise BadShape(f"{where} is empty")
    return message


def _content(content: Any, role: str, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts_are_typed = (
        isinstance(content, list) and content and all(isinstance(p, dict) and "type" in p for p in content)
    )
    if role == "tool" and not parts_are_typed:
        return json.dumps(content, ensure_ascii=False)  # a result given as data; templates want text
    if not isinstance(content, list):
        raise BadShape(f"{where}: its content is not text")
    texts: list[str] = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise BadShape(f"{where}: its content has a part of type {kind!r}, and only text can be trained on")
        texts.append(part["text"])
    return "".join(texts)


def _calls(given: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(given, str):
        try:
            given = _from_json(given)
        except BadShape as error:
            raise BadShape(f"{where}: the call {error}") from None
    calls = given if isinstance(given, list | tuple) else [given]
    if not calls:
        raise BadShape(f"{where} has an empty list of calls")
    return [_call(call, where) for call in calls]


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise BadShape(f"{where}: a call is not an object")
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise BadShape(f"{where}: a call has no function name")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = _from_json(arguments) if arguments.strip() else {}
        except BadShape as error:
            raise BadShape(f"{where}: the arguments of {name} are not an object: {error}") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise BadShape(f"{where}: the arguments of {name} are not an object")
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) and call["id"] else {}
    return identity | {"type": "function", "function": {"name": name, "arguments": arguments}}


def _check_order(messages: list[Message], begins_inside: bool) -> None:
    previous: Message | None = None
    for number, message in enumerate(messages, 1):
        if message["role"] == "tool":
            answers = previous is not None and (previous["role"] == "tool" or "tool_calls" in previous)
            if not answers and not (previous is None and begins_inside):
                raise BadShape(f"message {number} is a tool result, and no call comes before it")
        previous = message


def _from_json(text: str) -> Any:
    from tunesmith.rows.json_files import parse

    try:
        return parse(text)
    except ValueError as error:
        raise BadShape(f"is not valid JSON: {error}") from None
