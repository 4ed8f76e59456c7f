"""Ask an OpenAI-compatible endpoint many questions, and get an outcome for each of them, whatever the endpoint does.

A refused connection, a stall, an HTTP error or a body that is no chat completion costs that question and no other. An
endpoint that has gone silent altogether is noticed: the questions left are given up at once instead of one time-out
after the other.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from tunesmith.artifacts import Endpoint
from tunesmith.evaluate.wire import Malformed, chat_messages, read_completion
from tunesmith.rows.conversation import Message


@dataclass(frozen=True)
class ToolCall:
    """A call as the endpoint gave it; `arguments` is the text that should hold a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Answer:
    """What came back for one question: text and calls, or the kind of error."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str = ""
    error: str = ""  # connection | timeout | http_NNN | malformed | too_large | not_asked; empty when answered
    detail: str = ""  # the error in words

    @property
    def may_succeed_later(self) -> bool:
        """Whether the same question can get an answer another time: the endpoint failed, not the request."""
        client_errors = self.error.startswith("http_4") and self.error not in ("http_408", "http_429")
        return bool(self.error) and not client_errors


@dataclass(frozen=True)
class Question:
    """One request. `key` names it in the store of answers."""

    key: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    max_tokens: int


# No answer of so many tokens is longer: an endpoint that sends more does not keep to `max_tokens`.
_BODY_BYTES, _BODY_BYTES_PER_TOKEN = 1 << 16, 256


@dataclass(frozen=True)
class Patience:
    """How long the client waits and how often it tries."""

    timeout_seconds: float = 600.0  # a whole answer; queueing on a busy server included
    connect_timeout_seconds: float = 10.0
    num_tries: int = 3
    first_pause_seconds: float = 0.5  # doubled after every try


def ask_all(
    endpoint: Endpoint,
    questions: Sequence[Question],
    on_answer: Callable[[Question, Answer], None],
    *,
    concurrency: int,
    seed: int,
    patience: Patience | None = None,
) -> None:
    """Ask every question greedily (temperature 0) and hand over each answer as it arrives.

    Args:
        endpoint: where to ask.
        questions: asked in order, `concurrency` at a time.
        on_answer: called exactly once per question, from this thread.
        concurrency: requests in flight.
        seed: sent along; it breaks ties in engines that sample even at temperature 0.
        patience: time limits and tries.
    """
    crew = _Crew(endpoint, on_answer, concurrency, seed, patience or Patience())
    asyncio.run(crew.work(questions))


class _Crew:
    """`concurrency` workers that take questions from one list."""

    def __init__(
        self,
        endpoint: Endpoint,
        on_answer: Callable[[Question, Answer], None],
        concurrency: int,
        seed: int,
        patience: Patience,
    ) -> None:
        self._endpoint, self._on_answer, self._seed, self._patience = endpoint, on_answer, seed, patience
        self._concurrency = concurrency
        self._silent_in_a_row = 0

    async def work(self, questions: Sequence[Question]) -> None:
        limits = httpx.Limits(max_connections=self._concurrency, max_keepalive_connections=self._concurrency)
        # Proxies of the environment are for the world outside, not for a server on this machine.
        async with httpx.AsyncClient(limits=limits, timeout=self._timeout(), trust_env=False) as client:
            waiting = iter(questions)
            workers = min(self._concurrency, len(questions))
            await asyncio.gather(*(self._worker(client, waiting) for _ in range(workers)))

    def _timeout(self) -> httpx.Timeout:
        return httpx.Timeout(self._patience.timeout_seconds, connect=self._patience.connect_timeout_seconds)

    async def _worker(self, client: httpx.AsyncClient, waiting: Iterator[Question]) -> None:
        for question in waiting:
            if self._is_silent():
                answer = Answer(error="not_asked", detail="the endpoint had stopped answering")
            else:
                answer = await self._ask_patiently(client, question)
            self._on_answer(question, answer)

    def _is_silent(self) -> bool:
        return self._silent_in_a_row >= max(8, self._concurrency)

    async def _ask_patiently(self, client: httpx.AsyncClient, question: Question) -> Answer:
        pause = self._patience.first_pause_seconds
        for attempt in range(1, self._patience.num_tries + 1):
            answer = await self._ask(client, question)
            # A stall is not tried again here: what stalled once costs the whole time-out once more.
            if not answer.may_succeed_later or answer.error == "timeout" or attempt == self._patience.num_tries:
                break
            await asyncio.sleep(pause)
            pause *= 2
        silent = answer.error in ("connection", "timeout")
        self._silent_in_a_row = self._silent_in_a_row + 1 if silent else 0
        return answer

    async def _ask(self, client: httpx.AsyncClient, question: Question) -> Answer:
        """Send one request. The time limit covers all of it: a body that drips for ever ends, too."""
        try:
            async with asyncio.timeout(self._patience.timeout_seconds):
                return await self._exchange(client, question)
        except (TimeoutError, httpx.TimeoutException) as error:
            if isinstance(error, httpx.ConnectTimeout):
                return Answer(error="connection", detail="no connection in time")
            return Answer(error="timeout", detail=f"no answer within {self._patience.timeout_seconds:g} s")
        except httpx.DecodingError as error:
            return Answer(error="malformed", detail=f"the body cannot be decoded: {error}")
        except (httpx.HTTPError, OSError) as error:
            return Answer(error="connection", detail=f"{type(error).__name__}: {error}".rstrip(": "))

    async def _exchange(self, client: httpx.AsyncClient, question: Question) -> Answer:
        url = f"{self._endpoint.url.rstrip('/')}/v1/chat/completions"
        most_bytes = _BODY_BYTES + _BODY_BYTES_PER_TOKEN * question.max_tokens
        async with client.stream("POST", url, json=self._request(question)) as response:
            body = bytearray()
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > most_bytes:
                    return Answer(error="too_large", detail=f"a body of more than {most_bytes} bytes")
        if response.status_code != 200:
            return Answer(error=f"http_{response.status_code}", detail=_error_message(bytes(body)))
        try:
            text, calls, finish_reason = read_completion(bytes(body))
        except Malformed as error:
            return Answer(error="malformed", detail=str(error))
        return Answer(text, tuple(ToolCall(name, arguments) for name, arguments in calls), finish_reason)

    def _request(self, question: Question) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self._endpoint.model,
            "messages": chat_messages(question.messages),
            "max_tokens": question.max_tokens,
            "temperature": 0,
            "seed": self._seed,
        }
        return request | ({"tools": list(question.tools)} if question.tools else {})


def _error_message(body: bytes) -> str:
    """Return the server's own words, shortened."""
    text = body[:2000].decode("utf-8", "replace")
    try:
        document = json.loads(text)
        text = str(document.get("error", {}).get("message") or document.get("message") or text)
    except (ValueError, AttributeError, RecursionError):
        pass
    return " ".join(text.split())[:300]
