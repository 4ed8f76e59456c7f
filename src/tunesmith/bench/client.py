"""Requests in flight: the closed loop, the open loop, and what ends them.

A closed loop keeps a number of requests in flight: a slow server slows the load. An open loop sends each request when
it is due, whatever has become of the others, as users do; there every time counts from that moment.

Nothing waits for ever: a request has a limit in all and one for silence, a level has a limit, and Ctrl-C or SIGTERM
ends the level with what it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from tunesmith.bench.http import Address, Connection, RawAnswer, request
from tunesmith.bench.stream import Output, Timing, read_answer
from tunesmith.bench.traffic import Request

_WATCH_SECONDS = 0.1
_UNREAD_BYTES = 256 << 20  # beyond, answers are read as they end, while others are timed: some 0.5 ms for 200 tokens
_COARSE_SECONDS = 0.001  # timers of the event loop wake up to so much late
_SPIN_RATE = 100.0  # requests per second; up to here the last millisecond is waited out, at most a tenth of a core
_NUM_TEXTS = 64


@dataclass(frozen=True)
class Target:
    """The endpoint under test, and how long it may take. Limits in seconds."""

    url: str  # without /v1
    model: str
    api_key: str | None = None
    timeout_seconds: float = 600.0  # for one whole answer
    stall_seconds: float = 120.0  # of silence, once an answer has begun
    level_seconds: float = 3600.0  # for one level

    def headers(self) -> dict[str, str]:
        """Return what every request says about itself."""
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        return headers | ({"Authorization": f"Bearer {self.api_key}"} if self.api_key else {})


@dataclass
class LevelRun:
    """Everything that one level gave.

    Attributes:
        concurrency: requests kept in flight; None in an open loop.
        rate: requests per second that were asked for; None in a closed loop and for a trace.
        num_unfinished: requests that were in flight when the level was ended early; not among the timings.
        num_unsent: requests that it never came to.
        ended_by: `signal` or `limit` when the level was ended early.
        begin: when the clock started (`time.perf_counter`).
        client_cpu_fraction: of one core, spent by this process while requests were in flight.
        texts: some answers' texts with the server's own count of their tokens.
    """

    concurrency: int | None = None
    rate: float | None = None
    timings: list[Timing] = field(default_factory=list)
    wall_seconds: float = 0.0
    client_cpu_fraction: float = 0.0
    num_unfinished: int = 0
    num_unsent: int = 0
    ended_by: str = ""
    signal_number: int = 0
    begin: float = 0.0
    texts: list[tuple[str, int]] = field(default_factory=list)

    @property
    def is_partial(self) -> bool:
        return bool(self.ended_by)


def run_level(
    target: Target,
    requests: Sequence[Request],
    *,
    concurrency: int | None = None,
    rate: float | None = None,
    warmup: Sequence[Request] = (),
    on_done: Callable[[], None] = lambda: None,
) -> LevelRun:
    """Send every request once and wait for its end.

    Args:
        target: where requests go.
        requests: sent in this order; in an open loop each at its `due_seconds`.
        concurrency: requests to keep in flight (a closed loop); None for an open loop.
        rate: what the open loop's moments were drawn for, to be noted.
        warmup: sent, and waited for, before the clock starts.
        on_done: called after each timed request.
    """
    level = _Level(target, LevelRun(concurrency, rate), on_done)
    return asyncio.run(level.run(requests, warmup))


class _Level:
    def __init__(self, target: Target, result: LevelRun, on_done: Callable[[], None]) -> None:
        self._target, self._result, self._on_done = target, result, on_done
        self._address = Address.of(target.url)
        self._heads = {path: self._address.head("POST", path, target.headers()) for path in Request.PATHS.values()}
        self._idle: list[Connection] = []
        self._in_flight: dict[Connection, tuple[Request, RawAnswer]] = {}
        self._answers: list[tuple[Request, RawAnswer]] = []
        self._unread_bytes = 0
        self._must_end = asyncio.Event()

    async def run(self, requests: Sequence[Request], warmup: Sequence[Request]) -> LevelRun:
        result = self._result
        _allow_many_files()
        with _signals_to(self._end_by_signal), _no_collection():
            watch = asyncio.create_task(self._watch())
            limit = asyncio.get_running_loop().call_later(self._target.level_seconds, self._end_by_limit)
            try:
                await self._closed(warmup, result.concurrency or len(warmup), lambda: None)
                self._answers, self._unread_bytes = [], 0
                result.begin, cpu = time.perf_counter(), time.process_time()
                if result.concurrency is not None:
                    await self._closed(requests, result.concurrency, self._on_done)
                else:
                    await self._open(requests)
                result.wall_seconds = time.perf_counter() - result.begin
                result.client_cpu_fraction = (time.process_time() - cpu) / (result.wall_seconds or 1.0)
            finally:
                limit.cancel()
                watch.cancel()
                for connection in self._idle:
                    connection.close()
            # Only now, when nothing is timed any more, is the rest read.
            self._read_answers()
        result.timings.sort(key=lambda timing: timing.started)
        result.num_unsent = len(requests) - len(result.timings) - result.num_unfinished
        return result

    async def _closed(self, requests: Sequence[Request], concurrency: int, on_done: Callable[[], None]) -> None:
        waiting = iter(requests)

        async def work() -> None:
            for item in waiting:
                if self._must_end.is_set():
                    return
                await self._send(item, None)
                on_done()

        await asyncio.gather(*(work() for _ in range(min(concurrency, len(requests)))))

    async def _open(self, requests: Sequence[Request]) -> None:
        tasks: set[asyncio.Task[None]] = set()
        seconds = requests[-1].due_seconds if requests else 0.0
        early = _COARSE_SECONDS if len(requests) <= _SPIN_RATE * seconds else 0.0

        def ended(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            self._on_done()

        for item in requests:
            due = self._result.begin + item.due_seconds
            await self._wait_until(due, early)
            if self._must_end.is_set():
                break
            task = asyncio.create_task(self._send(item, due))
            tasks.add(task)
            task.add_done_callback(ended)
        while tasks:
            await asyncio.wait(tasks)

    async def _wait_until(self, moment: float, early: float) -> None:
        """Wait with a timer until `early` seconds before the moment, and then by looking at the clock."""
        while (left := moment - time.perf_counter()) > 0 and not self._must_end.is_set():
            if left > early:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._must_end.wait(), left - early)
            else:
                await asyncio.sleep(0)

    async def _send(self, item: Request, due: float | None) -> None:
        """Send one request; `due` is None when it is due now."""
        connection = self._idle.pop() if self._idle else Connection(self._address)
        content = request(self._heads[item.path], item.body)
        answer = RawAnswer(started=time.perf_counter() if due is None else due)
        self._in_flight[connection] = (item, answer)
        await connection.post(content, answer)
        del self._in_flight[connection]
        self._idle.append(connection)
        self._answers.append((item, answer))
        self._unread_bytes += answer.num_bytes
        if self._unread_bytes > _UNREAD_BYTES:
            self._read_answers()

    async def _watch(self) -> None:
        """Give up on requests that take too long."""
        limits = self._target
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            now = time.perf_counter()
            for connection, (_, answer) in list(self._in_flight.items()):
                if now - answer.started > limits.timeout_seconds:
                    connection.give_up("timeout", f"no complete answer within {limits.timeout_seconds:g} s")
                elif answer.times and now - answer.times[-1] > limits.stall_seconds:
                    connection.give_up("stall", f"nothing more came for {limits.stall_seconds:g} s")

    def _end_by_signal(self, number: int) -> None:
        self._result.signal_number = number
        self._end("signal")

    def _end_by_limit(self) -> None:
        self._end("limit")

    def _end(self, why: str) -> None:
        self._result.ended_by = self._result.ended_by or why
        self._must_end.set()
        for connection in list(self._in_flight):
            connection.give_up("unfinished", "the level ended first")

    def _read_answers(self) -> None:
        result = self._result
        for item, answer in self._answers:
            if answer.problem == "unfinished":
                result.num_unfinished += 1
                continue
            timing, output = read_answer(item.name, answer, result.begin)
            result.timings.append(timing)
            self._keep_text(timing, output)
        self._answers, self._unread_bytes = [], 0

    def _keep_text(self, timing: Timing, output: Output) -> None:
        is_plain = not timing.failure and timing.has_usage and not output.has_calls and len(output.text) > 0
        if is_plain and len(output.text) == len(output.times) and len(self._result.texts) < _NUM_TEXTS:
            self._result.texts.append((output.answer_text(), timing.num_output_tokens or 0))


@contextlib.contextmanager
def _signals_to(end: Callable[[int], None]) -> Iterator[None]:
    """Let SIGINT and SIGTERM call `end` inside the running event loop; afterwards they do what they did before."""
    loop = asyncio.get_running_loop()
    before: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(end, number)

    with contextlib.suppress(ValueError):  # in a thread, signals go elsewhere
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from stopping the clock's work; what a level leaves is collected after it."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _allow_many_files() -> None:
    """Raise the limit of open connections as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard)) if soft < hard else None
