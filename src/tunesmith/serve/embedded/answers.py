"""What clients get: OpenAI's response objects, whole and in chunks.

Source: https://platform.openai.com/docs/api-reference/chat/object, /chat-streaming and /completions/object.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.serve.embedded.sequence import TokenLogprob

TokenText = Callable[[int], str]


@dataclass(frozen=True)
class Usage:
    """Tokens of a request. A prompt counts once, however many choices it has."""

    num_prompt: int
    num_completion: int

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
