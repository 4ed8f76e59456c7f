"""Ask an OpenAI-compatible endpoint, and get an outcome for every request, whatever the endpoint does.

A refused connection, a stall, an HTTP error or a body that is no completion costs that request and no other. An
endpoint that is evidently gone is noticed (`Client.gone`): the requests left are given up at once, instead of one
time-out after the other.

Answers are read whole, not as a stream: the tool calls are then put together by the server, whose business it is.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from tunesmith.artifacts import Endpoint
from tunesmith.evaluate.dialect import Dialect
from tunesmith.evaluate.wire import Completion, Malformed, read_completion
from tunesmith.recipe.environment import expand, redact
from tunesmith.rows.conversation import Message


@dataclass(frozen=True)
class ToolCall:
    """A call as the endpoint gave it; `arguments` is the text that should hold a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Request:
    """One request: everything that decides its answer, besides the model.

    With `prompt`, the text goes to /v1/completions as it is, past the server's chat template; `messages` and `tools`
    are for people only then.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    max_tokens: int = 256
    prompt: str | None = None
    stop: tuple[str, ...] = ()
    temperature: float = 0.0


@dataclass(frozen=True)
class Answer:
    """What came back for one request: text and calls, or the kind of error."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str = ""
    error: str = ""  # connection | timeout | http_NNN | malformed | too_large | not_asked; empty when answered
    detail: str = ""  # the error in words
    # What it cost: no part of what was said. Tokens as the server counts them; None when it does not say.
    latency_seconds: float = field(default=0.0, compare=False)
    num_prompt_tokens: int | None = field(default=None, compare=False)
    num_completion_tokens: int | None = field(default=None, compare=False)

    @property
    def may_succeed_later(self) -> bool:
        """Whether the same request can get an answer another time: the endpoint failed, not the request."""
        return bool(self.error) and (not self.error.startswith("http_4") or self.error in _NOT_THE_REQUESTS_FAULT)

    @property
    def is_worth_another_try(self) -> bool:
        """Whether to ask again at once. Not after a stall: it would cost the whole time limit once more."""
        return self.may_succeed_later and self.error != "timeout" and self.error not in _REFUSALS


# Wrong key, no right, no such address or model: every request gets the same, until somebody sees to it.
_REFUSALS = ("http_401", "http_403", "http_404", "http_405")
_BUSY = ("http_429", "http_503")
_NOT_THE_REQUESTS_FAULT = ("http_408", "http_409", "http_425", "http_429", *_REFUSALS)
# An endpoint that neither connects nor answers in time is gone after so many requests in a row; one that answers every
# request with an error gets more, because a server that is starting or overloaded does the same for a while.
_SILENT_IN_A_ROW, _FAILED_IN_A_ROW = 8, 24
# One that has answered before and then hangs is gone long before the time limit of a request: when nothing has come
# back for a while (`Patience.silence_seconds`, and so many times its slowest answer), and it gives no sign of life.
_SILENCE_IN_SLOWEST_ANSWERS, _NUM_SIGNS_ASKED_FOR = 5.0, 3
# No answer of so many tokens is longer: an endpoint that sends more does not keep to `max_tokens`.
_BODY_BYTES, _BODY_BYTES_PER_TOKEN = 1 << 16, 256


@dataclass(frozen=True)
class Patience:
    """How long the client waits and how often it tries."""

    timeout_seconds: float = 600.0  # a whole answer; queueing on a busy server included
    stall_seconds: float = 120.0  # between two pieces of an answer that has begun to arrive
    connect_timeout_seconds: float = 10.0
    num_tries: int = 4
    num_tries_when_busy: int = 12  # three minutes and more of 429 or 503: too much to do, or a model still being loaded
    first_pause_seconds: float = (
        0.5  # doubled after every try, with a random share so that workers do not march in step
    )
    longest_pause_seconds: float = 30.0  # also where the server's Retry-After asks for more
    silence_seconds: float = 60.0  # without any answer, before an endpoint that answered before is asked for a sign
    sign_seconds: float = 10.0  # for each of three signs of life

    @classmethod
    def with_limit(cls, seconds: float) -> Self:
        """Return the usual patience, with another limit for a whole answer."""
        return cls(timeout_seconds=seconds, stall_seconds=min(seconds, cls.stall_seconds))


class Client:
    """A connection to one endpoint, for the length of an `async with`.

    Args:
        endpoint: where to ask.
        concurrency: connections that may be open at once.
        seed: sent along; it breaks ties in engines that sample even at temperature 0.
        patience: time limits and tries.
    """

    def __init__(self, endpoint: Endpoint, *, concurrency: int, seed: int, patience: Patience) -> None:
        self._endpoint, self._concurrency, self._patience = endpoint, concurrency, patience
        self.dialect = Dialect(endpoint.model, seed)
        self._busy_until = 0.0
        self._failed_in_a_row: Counter[str] = Counter()
        self._last_failure = Answer()
        self._under_way: set[asyncio.Timeout] = set()
        self._slowest_seconds = 0.0
        self._last_heard = 0.0  # when the last answer came; 0 before the first
        self._hangs = False
        # What a person sees may not depend on chance; when a request is sent again may.
        self._jitter = random.Random()

    async def __aenter__(self) -> Self:
        most = self._concurrency + 1  # one for signs of life
        limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
        timeout = httpx.Timeout(self._patience.timeout_seconds, connect=self._patience.connect_timeout_seconds)
        key = expand(self._endpoint.api_key)
        self._http = httpx.AsyncClient(
            limits=limits,
            timeout=timeout,
            headers={"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            # Proxies of the environment are for the world outside, not for a server on this machine.
            trust_env=not is_loopback(self._endpoint.url),
        )
        self._watch = asyncio.create_task(self._watch_for_silence())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)
        await self._http.aclose()

    @property
    def gone(self) -> str:
        """Why the endpoint counts as gone; empty while it does not."""
        if self._hangs:
            return "it hangs: no answer any more, and no sign of life"
        failed = self._failed_in_a_row
        silent = failed["connection"] + failed["timeout"]
        refused = sum(failed[kind] for kind in _REFUSALS)
        most = max(_SILENT_IN_A_ROW, self._concurrency)
        if silent < most and refused < most and failed.total() < max(_FAILED_IN_A_ROW, 2 * self._concurrency):
            return ""
        kinds = ", ".join(f"{number} × {kind}" for kind, number in failed.most_common())
        return f"{failed.total()} requests in a row failed ({kinds}; {self._last_failure.detail})"

    async def ask(self, request: Request) -> Answer:
        """Return the answer to one request, or its error after the last try. Never raises for what an endpoint does."""
        if self.gone:
            return Answer(error="not_asked", detail="the endpoint had stopped answering")
        started = time.monotonic()
        for attempt in range(1, self._patience.num_tries_when_busy + 1):
            await self._wait_while_busy()
            answer, retry_after_seconds = await self._ask_once(request)
            # Where everything fails, one try each shows soon enough whether anything still works.
            is_busy = answer.error in _BUSY
            most = self._patience.num_tries_when_busy if is_busy else self._patience.num_tries
            most = 1 if self._failed_in_a_row.total() >= _SILENT_IN_A_ROW else most
            if not answer.is_worth_another_try or attempt >= most:
                break
            pause = self._pause_seconds(attempt, retry_after_seconds)
            if is_busy:  # for everybody: who asks on makes it last
                self._busy_until = max(self._busy_until, time.monotonic() + pause)
            else:
                await asyncio.sleep(pause)
        latency = time.monotonic() - started
        self._count(answer, latency)
        return replace(answer, latency_seconds=round(latency, 4))

    async def _wait_while_busy(self) -> None:
        """Wait until the endpoint has said it may be asked again, and a little longer, so that not all come at once."""
        while (left := self._busy_until - time.monotonic()) > 0:
            await asyncio.sleep(left + self._jitter.uniform(0.0, self._patience.first_pause_seconds))

    def _pause_seconds(self, attempt: int, retry_after_seconds: float) -> float:
        pause: float = self._patience.first_pause_seconds * 2 ** (attempt - 1) * self._jitter.uniform(1.0, 1.5)
        return min(max(pause, retry_after_seconds), self._patience.longest_pause_seconds)

    def _count(self, answer: Answer, latency_seconds: float) -> None:
        if answer.may_succeed_later:
            self._failed_in_a_row[answer.error] += 1
            self._last_failure = answer
        else:
            self._failed_in_a_row.clear()  # it answers, if only that the request will not do
            self._last_heard = time.monotonic()
            self._slowest_seconds = max(self._slowest_seconds, latency_seconds)

    async def _watch_for_silence(self) -> None:
        """End all requests under way when an endpoint that answered before hangs."""
        while not self._hangs:
            await asyncio.sleep(self._patience.silence_seconds / 10)
            longest = max(self._patience.silence_seconds, _SILENCE_IN_SLOWEST_ANSWERS * self._slowest_seconds)
            silent_seconds = time.monotonic() - self._last_heard
            if self._under_way and self._last_heard and silent_seconds > longest:
                heard = self._last_heard
                signs = [await self._gives_a_sign() for _ in range(_NUM_SIGNS_ASKED_FOR)]
                self._hangs = not any(signs) and heard == self._last_heard
        for limit in self._under_way:
            limit.reschedule(asyncio.get_running_loop().time())

    async def _gives_a_sign(self) -> bool:
        """Return whether the endpoint says anything at all when asked for its models."""
        try:
            async with asyncio.timeout(self._patience.sign_seconds):
                await self._http.get(f"{self._endpoint.url.rstrip('/')}/v1/models")
        except (TimeoutError, httpx.HTTPError, OSError):
            return False
        return True

    async def _ask_once(self, request: Request) -> tuple[Answer, float]:
        """Send one request. The time limit covers all of it: a body that drips for ever ends, too."""
        patience, limit = self._patience, asyncio.timeout(self._patience.timeout_seconds)
        self._under_way.add(limit)
        try:
            async with limit:
                return await self._exchange(request)
        except httpx.ConnectTimeout:
            return Answer(error="connection", detail="no connection in time"), 0.0
        except _Stalled:
            detail = f"the answer stopped arriving for {patience.stall_seconds:g} s"
            return Answer(error="timeout", detail=detail), 0.0
        except (TimeoutError, httpx.TimeoutException):
            detail = "the endpoint hangs" if self._hangs else f"no answer within {patience.timeout_seconds:g} s"
            return Answer(error="timeout", detail=detail), 0.0
        except httpx.DecodingError as error:
            return Answer(error="malformed", detail=f"the body cannot be decoded: {error}"), 0.0
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return Answer(error="connection", detail=f"{type(error).__name__}: {error}".rstrip(": ")), 0.0
        finally:
            self._under_way.discard(limit)

    async def _exchange(self, request: Request) -> tuple[Answer, float]:
        path = "chat/completions" if request.prompt is None else "completions"
        url = f"{self._endpoint.url.rstrip('/')}/v1/{path}"
        most_bytes = _BODY_BYTES + _BODY_BYTES_PER_TOKEN * request.max_tokens
        # A row may hold half of a surrogate pair, which UTF-8 cannot.
        document = self.dialect.document(
            request.messages,
            request.tools,
            request.max_tokens,
            prompt=request.prompt,
            stop=request.stop,
            temperature=request.temperature,
        )
        content = json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
        async with self._http.stream("POST", url, content=content) as response:
            body = bytearray()
            pieces = response.aiter_bytes()
            while (piece := await self._next_piece(pieces)) is not None:
                body += piece
                if len(body) > most_bytes:
                    return Answer(error="too_large", detail=f"a body of more than {most_bytes} bytes"), 0.0
        if response.status_code != 200 and self.dialect.learn(response.status_code, body.decode("utf-8", "replace")):
            return await self._exchange(request)
        if response.status_code != 200:
            failure = Answer(error=f"http_{response.status_code}", detail=_error_message(bytes(body)))
            return failure, _retry_after_seconds(response)
        try:
            return _answer(read_completion(bytes(body))), 0.0
        except Malformed as error:
            return Answer(error="malformed", detail=str(error)), 0.0

    async def _next_piece(self, pieces: Any) -> bytes | None:
        """Return the next piece of a body, None at its end."""
        try:
            async with asyncio.timeout(self._patience.stall_seconds):
                piece: bytes | None = await anext(pieces, None)
                return piece
        except TimeoutError:
            raise _Stalled from None


def is_loopback(url: str) -> bool:
    """Return whether an address is on this machine."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


class _Stalled(Exception):
    """A body stopped arriving."""


def _answer(completion: Completion) -> Answer:
    calls = tuple(ToolCall(name, arguments) for name, arguments in completion.calls)
    return Answer(
        completion.text,
        calls,
        completion.finish_reason,
        num_prompt_tokens=completion.num_prompt_tokens,
        num_completion_tokens=completion.num_completion_tokens,
    )


def _retry_after_seconds(response: httpx.Response) -> float:
    """Return what the server asks to wait, 0 when it does not say (or says it as a date)."""
    try:
        seconds = float(response.headers.get("Retry-After", ""))
    except ValueError:
        return 0.0
    return seconds if 0 <= seconds < float("inf") else 0.0


def _error_message(body: bytes) -> str:
    """Return the server's own words, shortened."""
    text = body[:2000].decode("utf-8", "replace")
    try:
        document = json.loads(text)
        text = str(document.get("error", {}).get("message") or document.get("message") or text)
    except (ValueError, AttributeError, RecursionError):
        pass
    return redact(" ".join(text.split()))[:300]  # a server may repeat the key it was sent
