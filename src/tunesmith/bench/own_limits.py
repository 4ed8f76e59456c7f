"""What the load generator itself can do on this machine: a result near that says more about it than about the server.

Measured against `null_server` in a process of its own, in some two seconds, and remembered for a day. The ceilings
are by processor time, reading of the answers included: what one core would do. So they hold on a busy machine, too.
The timing error is the time from the server's stamp on a token to the client's, by one clock: the way through the
kernel, and the client's lateness.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.bench.client import LevelRun, Target, run_level
from tunesmith.bench.http import Address, Connection, RawAnswer, request
from tunesmith.bench.stream import read_answer
from tunesmith.bench.summary import LevelSummary, percentile
from tunesmith.bench.traffic import Asking, Prompt, Request
from tunesmith.errors import BenchError
from tunesmith.hardware import num_cpus
from tunesmith.process import die_with_parent
from tunesmith.store import files

_VERSION = 1  # raised when the client changes its speed
_REMEMBERED_SECONDS = 86_400.0
_NEAR = 0.5  # of a ceiling
_COARSE = 0.1  # of a median
_PROMPT = Prompt("null", ({"role": "user", "content": "nothing"},))


@dataclass(frozen=True)
class Limits:
    """What one core of this machine allows the client."""

    requests_per_second: float
    tokens_per_second: float  # streamed, one event each
    lateness_median_ms: float  # of a token's stamp behind the server's
    lateness_p99_ms: float
    measured_at: float  # seconds since 1970
    machine: str

    def sentence(self) -> str:
        """Return the limits as a person reads them."""
        return (
            f"up to {self.requests_per_second:,.0f} requests/s and {self.tokens_per_second:,.0f} streamed tokens/s "
            f"on one core here; stamps late by {self.lateness_median_ms:.2f} ms (median), "
            f"{self.lateness_p99_ms:.2f} ms (p99)"
        )


def own_limits(remembered: Path) -> Limits:
    """Return the limits that a file remembers for this machine, or measure them and write the file.

    Raises:
        BenchError: the null server did not start or did not answer.
    """
    machine = f"{platform.node()}, {num_cpus()} CPUs, Python {platform.python_version()}, {__version__}.{_VERSION}"
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        known = Limits(**json.loads(remembered.read_text()))
        if known.machine == machine and 0 <= time.time() - known.measured_at < _REMEMBERED_SECONDS:
            return known
    limits = _measure(machine)
    with contextlib.suppress(OSError):
        files.write_json(remembered, dataclasses.asdict(limits))
    return limits


def complaints(limits: Limits, name: str, summary: LevelSummary) -> list[str]:
    """Return where a level's numbers come near what the client can do."""
    found = []
    for key, ceiling, unit in (
        ("requests_per_second", limits.requests_per_second, "requests/s"),
        ("output_tokens_per_second", limits.tokens_per_second, "tokens/s"),
    ):
        value = summary.get(key)
        if value is not None and value > _NEAR * ceiling:
            told = f"{value:,.0f} {unit} are {value / ceiling:.0%} of what the client can do here ({ceiling:,.0f})"
            found.append(f"{name}: {told}: the result may be its own")
    medians = (("ttft_median_ms", "time to first token"), ("itl_median_ms", "inter-token latency"))
    short = [(word, summary.get(key) or 0.0) for key, word in medians]
    near = [f"{word} {value:.2f} ms" for word, value in short if 0 < value < limits.lateness_p99_ms / _COARSE]
    if near:
        error = f"{limits.lateness_p99_ms:.2f} ms at p99"
        found.append(f"{name}: close to the client's own timing error ({error}): median {', '.join(near)}")
    return found


@contextlib.contextmanager
def null_server() -> Iterator[str]:
    """Run the null server until the block ends; yield its URL.

    Raises:
        BenchError: it did not start.
    """
    command = [sys.executable, "-m", "tunesmith.bench.null_server"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent
    )
    assert process.stdout is not None and process.stdin is not None
    try:
        port = process.stdout.readline().strip()
        if not port:
            raise BenchError("the null server did not start", do="see its error above")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()


def _measure(machine: str) -> Limits:
    with null_server() as url:
        requests_per_second = _per_cpu_second(f"{url}/1/1/0", num_requests=1500, num_tokens=1)
        tokens_per_second = _per_cpu_second(f"{url}/500/1/0", num_requests=64, num_tokens=500)
        # The better of two rounds: what a neighbour's burst adds is not the client's, and would be remembered.
        rounds = [asyncio.run(_lateness(f"{url}/25/1/20", num_streams=32)) for _ in range(2)]
        late = min(rounds, key=lambda seconds: percentile(seconds, 0.99))
    return Limits(
        requests_per_second=round(requests_per_second, 1),
        tokens_per_second=round(tokens_per_second, 1),
        lateness_median_ms=round(1000 * percentile(late, 0.5), 4),
        lateness_p99_ms=round(1000 * percentile(late, 0.99), 4),
        measured_at=time.time(),
        machine=machine,
    )


def _per_cpu_second(url: str, *, num_requests: int, num_tokens: int) -> float:
    """Return the tokens that the client takes in one second of its processor time."""
    asked: list[Request] = [Asking("null", num_tokens).request(_PROMPT)] * num_requests
    target = Target(url, "null", timeout_seconds=60.0, level_seconds=60.0)
    run_level(target, asked[:16], concurrency=16)
    before = time.process_time()
    result: LevelRun = run_level(target, asked, concurrency=16)
    seconds = time.process_time() - before
    if result.ended_by == "signal":
        raise KeyboardInterrupt
    failed = next((timing for timing in result.timings if timing.failure), None)
    if failed is not None or len(result.timings) < num_requests:
        told = f"{failed.failure}: {failed.detail}" if failed else "stopped"
        raise BenchError(f"the client could not be measured against the null server: {told}", where=url)
    return num_requests * num_tokens / seconds


async def _lateness(url: str, *, num_streams: int) -> list[float]:
    """Return by how many seconds each token's stamp is behind the server's."""
    address = Address.of(url)
    asked = Asking("null", 25).request(_PROMPT)
    content = request(address.head("POST", asked.path, {}), asked.body)
    answers = [RawAnswer(started=time.perf_counter()) for _ in range(num_streams)]
    connections = [Connection(address) for _ in answers]
    await asyncio.gather(*(c.post(content, a) for c, a in zip(connections, answers, strict=True)))
    for connection in connections:
        connection.close()
    late: list[float] = []
    for answer in answers:
        _, output = read_answer("null", answer, 0.0)
        late += [when - int(text) / 1e9 for when, text in zip(output.times, output.text, strict=True)]
    if not late:
        raise BenchError("the client could not be measured against the null server: no tokens came", where=url)
    return late


def as_record(limits: Limits) -> dict[str, Any]:
    """Return the limits as artifacts hold them."""
    return {key: value for key, value in dataclasses.asdict(limits).items() if key != "measured_at"}
