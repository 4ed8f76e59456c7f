"""What clients get: OpenAI's response objects, whole and in chunks.

Source: https://platform.openai.com/docs/api-reference/chat/object, /chat-streaming and /completions/object.
"""

from __future__ import annotations

import json
import secrets
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.serve.embedded.sequence import TokenLogprob
from tunesmith.tokens.tool_calls import Call, certain_content, parse_tool_calls

TokenText = Callable[[int], str]


@dataclass
class Usage:
    """Tokens of a request. A prompt counts once, however many choices it has."""

    num_prompt: int
    num_completion: int = 0

    def to_json(self) -> dict[str, int]:
        """Return OpenAI's usage object."""
        return {
            "prompt_tokens": self.num_prompt,
            "completion_tokens": self.num_completion,
            "total_tokens": self.num_prompt + self.num_completion,
        }


@dataclass
class Envelope:
    """The fields around the choices of every object of one response."""

    kind: str  # chat.completion | chat.completion.chunk | text_completion
    model: str
    prefix: str
    identifier: str = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        self.identifier = f"{self.prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())

    def wrap(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Return a response object."""
        head = {"id": self.identifier, "object": self.kind, "created": self.created, "model": self.model}
        return head | {"choices": choices} | more


class ChatText:
    """One choice of a chat, taken apart into content and calls while it grows.

    Args:
        finds_calls: tools were on offer.
        one_call: `parallel_tool_calls` was false.
        clean: removes special tokens from content that was decoded with them.
    """

    def __init__(self, *, finds_calls: bool, one_call: bool = False, clean: Callable[[str], str] = str) -> None:
        self._finds_calls, self._one_call, self._clean = finds_calls, one_call, clean
        self._text = ""
        self._num_shown = 0  # characters of the content given out
        self._num_closed = 0
        self.calls: list[dict[str, Any]] = []

    def add(self, text: str) -> list[dict[str, Any]]:
        """Take more text; return the deltas that are certain by now."""
        self._text += text
        if not self._finds_calls:
            return [{"content": text}] if text else []
        deltas: list[dict[str, Any]] = []
        if not self.calls:
            deltas += self._show(self._text[: certain_content(self._text)])
        num_closed = self._text.count("</tool_call>")
        if num_closed > self._num_closed:
            self._num_closed = num_closed
            deltas += self._new_calls(parse_tool_calls(self._text)[1])
        return deltas

    def finish(self) -> list[dict[str, Any]]:
        """Return the deltas of what was held back."""
        if not self._finds_calls:
            return []
        content, calls = parse_tool_calls(self._text)
        return [*self._show(content), *self._new_calls(calls)]

    def message(self) -> dict[str, Any]:
        """Return the whole message of a finished choice."""
        content, _ = parse_tool_calls(self._text) if self._finds_calls else (self._text, None)
        content = self._clean(content) if self._finds_calls else content
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if self.calls else "")}
        return message | ({"tool_calls": self.calls} if self.calls else {})

    def finish_reason(self, reason: str | None) -> str | None:
        """Return the reason as the API words it: a stop after calls means that they are wanted."""
        return "tool_calls" if self.calls and reason == "stop" else reason

    def _show(self, content: str) -> list[dict[str, Any]]:
        new, self._num_shown = content[self._num_shown :], max(self._num_shown, len(content))
        new = self._clean(new)
        return [{"content": new}] if new else []

    def _new_calls(self, calls: list[Call]) -> list[dict[str, Any]]:
        wanted = calls[:1] if self._one_call else calls
        deltas = []
        for index in range(len(self.calls), len(wanted)):
            self.calls.append(_wired_call(wanted[index]))
            deltas.append({"tool_calls": [{"index": index} | self.calls[-1]]})
        return deltas


def _wired_call(call: Call) -> dict[str, Any]:
    # Nine letters and digits: Mistral's templates refuse any other identifier when the call comes back.
    identifier = "call" + "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(5))
    arguments = json.dumps(call["arguments"], ensure_ascii=False)
    return {"id": identifier, "type": "function", "function": {"name": call["name"], "arguments": arguments}}


def chat_logprobs(logprobs: Sequence[TokenLogprob], text_of: TokenText) -> dict[str, Any]:
    """Return the `logprobs` object of a chat choice."""
    return {"content": [_chat_token(token, text_of) for token in logprobs]}


def _chat_token(token: TokenLogprob, text_of: TokenText) -> dict[str, Any]:
    def entry(token_id: int, logprob: float | None) -> dict[str, Any]:
        text = text_of(token_id)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}

    return entry(token.token_id, token.logprob) | {"top_logprobs": [entry(i, value) for i, value in token.top]}


def completion_logprobs(logprobs: Sequence[TokenLogprob], text_of: TokenText, offset: int) -> dict[str, Any]:
    """Return the `logprobs` object of a plain completion; `offset` is where its text begins."""
    tokens = [text_of(token.token_id) for token in logprobs]
    offsets = []
    for text in tokens:
        offsets.append(offset)
        offset += len(text)
    top = [{text_of(i): value for i, value in token.top} if token.logprob is not None else None for token in logprobs]
    values = [token.logprob for token in logprobs]
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": top, "text_offset": offsets}
