"""Between our conversations and the JSON of OpenAI's chat completions.

Source: https://platform.openai.com/docs/api-reference/chat (messages, tool_calls, the completion object) and
https://platform.openai.com/docs/api-reference/completions (text in, text out).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.rows.conversation import Message


class Malformed(ValueError):
    """A body that is no chat completion; the message says what is wrong with it."""


@dataclass(frozen=True)
class Completion:
    """What a completion says; calls are (name, arguments text), token counts None when the server gives none."""

    text: str
    calls: tuple[tuple[str, str], ...]
    finish_reason: str
    num_prompt_tokens: int | None = None
    num_completion_tokens: int | None = None


def chat_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as the API wants them: calls with an id and arguments as JSON text, results naming their call."""
    sent: list[dict[str, Any]] = []
    unanswered: list[str] = []
    num_calls = 0
    for message in messages:
        wired = dict(message)
        if message.get("tool_calls"):
            unanswered, wired["tool_calls"] = [], []
            for call in message["tool_calls"]:
                num_calls += 1
                identifier = str(call.get("id") or f"call_{num_calls}")
                unanswered.append(identifier)
                wired["tool_calls"].append(_wired_call(call["function"], identifier))
        if message["role"] == "tool" and not message.get("tool_call_id"):
            num_calls += not unanswered
            wired["tool_call_id"] = unanswered.pop(0) if unanswered else f"call_{num_calls}"
        sent.append(wired)
    return sent


def _wired_call(function: dict[str, Any], identifier: str) -> dict[str, Any]:
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": identifier, "type": "function", "function": {"name": function["name"], "arguments": text}}


def read_completion(body: bytes) -> Completion:
    """Read a chat completion, or a completion of plain text.

    Raises:
        Malformed: the body is not JSON or not a completion.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the body is not JSON: {error}") from None
    try:
        choice = document["choices"][0]
        message = choice["message"] if "message" in choice else {"content": choice["text"]}
        calls = tuple(_call(call) for call in message.get("tool_calls") or [])
        text = _text(message.get("content"))
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Malformed("the body is no completion: choices[0].message is missing or misshapen") from None
    usage = document.get("usage")
    counts = [_count(usage, key) for key in ("prompt_tokens", "completion_tokens")]
    return Completion(text, calls, str(choice.get("finish_reason") or ""), *counts)


def _count(usage: Any, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _text(content: Any) -> str:
    """Return a message's text; content may be text, null, or a list of typed parts."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type", "text") == "text")
    if not isinstance(content, str | None):
        raise TypeError(content)
    return _well_formed(content or "")


def _call(call: Any) -> tuple[str, str]:
    function = call["function"]
    arguments = function.get("arguments")
    # Some servers send the object itself; to the comparison they say the same.
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return _well_formed(str(function["name"])), _well_formed(text)


def _well_formed(text: str) -> str:
    """Return text that UTF-8 can hold: a JSON escape may leave half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")
