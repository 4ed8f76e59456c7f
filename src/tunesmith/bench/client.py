"""Requests in flight and what they took: the closed loop, and one answer's timings.

Definitions, for every request that was answered (seconds from the moment it was sent):

    ttft   time to first token: the first event with text, reasoning or a piece of a call in it
    e2e    end-to-end latency: the end of the stream
    tpot   time per output token after the first: (e2e - ttft) / (output tokens - 1)
    itl    inter-token latencies: the times between successive events with output in them

Output tokens are what the server's usage says; only where it says nothing, events are counted instead.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.bench.http import Address, Connection, RawAnswer
from tunesmith.bench.traffic import Prompt

_PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Target:
    """The endpoint under test."""

    url: str  # without /v1
    model: str
    api_key: str | None = None
    timeout_seconds: float = 600.0  # for one whole answer


@dataclass(frozen=True)
class Timing:
    """What one request took. Times in seconds; None where there is no such time."""

    prompt: str  # where it comes from, file:line
    started: float  # since the level began
    ttft: float | None = None
    e2e: float | None = None
    tpot: float | None = None
    itl: tuple[float, ...] = ()
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None
    has_usage: bool = True
    finish_reason: str | None = None
    failure: str = ""  # connect | disconnect | timeout | http_NNN | malformed | error; empty when answered
    detail: str = ""


@dataclass
class LevelRun:
    """Everything that one level gave."""

    concurrency: int
    timings: list[Timing] = field(default_factory=list)
    wall_seconds: float = 0.0
    client_cpu_fraction: float = 0.0  # of one core, spent by this process while requests were in flight


def run_level(
    target: Target,
    prompts: Sequence[Prompt],
    *,
    concurrency: int,
    max_tokens: int,
    num_warmup: int = 0,
    on_done: Callable[[], None] = lambda: None,
) -> LevelRun:
    """Keep `concurrency` requests in flight until every prompt has been sent once (a closed loop).

    Args:
        target: where requests go.
        prompts: one request each, in this order.
        concurrency: requests in flight.
        max_tokens: tokens asked for per answer.
        num_warmup: requests sent, and waited for, before the clock starts.
        on_done: called after each timed request.
    """
    return asyncio.run(_Level(target, max_tokens, concurrency, on_done).run(prompts, num_warmup))


class _Level:
    def __init__(self, target: Target, max_tokens: int, concurrency: int, on_done: Callable[[], None]) -> None:
        self._target, self._max_tokens, self._on_done = target, max_tokens, on_done
        self._connections = [Connection(Address.of(target.url)) for _ in range(concurrency)]
        self._headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}

    async def run(self, prompts: Sequence[Prompt], num_warmup: int) -> LevelRun:
        warmup = [self._body(prompts[i % len(prompts)]) for i in range(num_warmup)]
        bodies = [self._body(prompt) for prompt in prompts]
        try:
            await self._loop(warmup, lambda: None)
            begin, cpu = time.perf_counter(), time.process_time()
            answers = await self._loop(bodies, self._on_done)
            wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
        finally:
            for connection in self._connections:
                connection.close()
        # Only now, when nothing is timed any more, is anything parsed.
        timings = [read_answer(p.name, answers[i], begin) for i, p in enumerate(prompts)]
        return LevelRun(len(self._connections), timings, wall, cpu / wall if wall else 0.0)

    async def _loop(self, bodies: list[bytes], on_done: Callable[[], None]) -> dict[int, RawAnswer]:
        waiting = iter(enumerate(bodies))
        answers: dict[int, RawAnswer] = {}
        workers = [self._work(connection, waiting, answers, on_done) for connection in self._connections]
        await asyncio.gather(*workers)
        return answers

    async def _work(
        self,
        connection: Connection,
        waiting: Iterator[tuple[int, bytes]],
        answers: dict[int, RawAnswer],
        on_done: Callable[[], None],
    ) -> None:
        for index, body in waiting:
            answers[index] = await connection.post(_PATH, body, self._headers, self._target.timeout_seconds)
            on_done()

    def _body(self, prompt: Prompt) -> bytes:
        request: dict[str, Any] = {
            "model": self._target.model,
            "messages": list(prompt.messages),
            "max_tokens": self._max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if prompt.tools:
            request["tools"] = list(prompt.tools)
        return json.dumps(request, ensure_ascii=False).encode()


def read_answer(name: str, raw: RawAnswer, begin: float) -> Timing:
    """Turn a raw answer into timings; what is no proper stream is a failure with a kind."""
    started = raw.started - begin

    def failed(kind: str, detail: str) -> Timing:
        return Timing(name, started, failure=kind, detail=" ".join(detail.split())[:300])

    if raw.problem:
        return failed(raw.problem, raw.detail)
    if raw.status != 200:
        return failed(f"http_{raw.status}", b"".join(piece for _, piece in raw.pieces).decode("utf-8", "replace"))
    events: list[float] = []  # times of events with output
    usage: dict[str, Any] = {}
    finish: tuple[float, str] | None = None
    try:
        for when, document in _events(raw.pieces):
            if "error" in document:
                return failed("error", json.dumps(document["error"], ensure_ascii=False))
            usage = document.get("usage") or usage
            for choice in document.get("choices") or []:
                if _has_output(choice):
                    events.append(when)
                if choice.get("finish_reason"):
                    finish = (when, str(choice["finish_reason"]))
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        return failed("malformed", f"an event is not a completion chunk: {error}")
    if finish is None:
        return failed("disconnect", "the stream ended without a finish_reason")
    times = events or [finish[0]]  # an answer may be empty: its end is then the first thing to be seen
    num_output = usage.get("completion_tokens")
    count = num_output if isinstance(num_output, int) else len(events)
    ttft, e2e = times[0] - raw.started, raw.ended - raw.started
    return Timing(
        prompt=name,
        started=started,
        ttft=ttft,
        e2e=e2e,
        tpot=(e2e - ttft) / (count - 1) if count > 1 else None,
        itl=tuple(later - earlier for earlier, later in itertools.pairwise(times)),
        num_prompt_tokens=usage.get("prompt_tokens"),
        num_output_tokens=count,
        has_usage=isinstance(num_output, int),
        finish_reason=finish[1],
    )


def _events(pieces: list[tuple[float, bytes]]) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yield the JSON events of a stream, each with the time at which its last byte arrived."""
    buffer = b""
    for when, piece in pieces:
        *lines, buffer = (buffer + piece).split(b"\n")
        for line in lines:
            data = line.strip().removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
            if data and data != b"[DONE]":
                document = json.loads(data)
                if not isinstance(document, dict):
                    raise TypeError(f"expected an object, found {data[:60]!r}")
                yield when, document


def _has_output(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return any(delta.get(key) for key in ("content", "reasoning_content", "reasoning", "tool_calls", "refusal"))
