"""Are the reported times those that the server kept? Every percentile within 2 ms or 2 %, by the server's own stamps.

The server runs in a process of its own and notes when it read each request and wrote each token, by the clock that the
client uses. What a request should have taken follows from those stamps and from the moment it was due: no assumption
about how busy the machine is enters. A machine that stops either process for some milliseconds between the two stamps
can still spoil a measurement; so a measurement may be repeated. A client that is wrong is wrong every time.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.fakes.scripted_stream_server import Noted, Stream, server_process
from tunesmith.bench.client import LevelRun, Target, run_level
from tunesmith.bench.summary import LevelSummary, percentile, summarise
from tunesmith.bench.traffic import Asking, Prompt, Request

ATTEMPTS = 6
FRACTIONS = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
TIMES = ("ttft", "e2e", "tpot", "itl")


def requests(count: int, rate: float | None = None) -> list[Request]:
    return [
        Asking("m", 8).request(Prompt(f"r:{i}", ({"role": "user", "content": f"n {i}"},)), i / rate if rate else 0.0)
        for i in range(count)
    ]


def expected(level: LevelRun, noted: list[Noted]) -> dict[str, list[float]]:
    """Return what answered requests took by the server's stamps, in milliseconds."""
    by_number = {int(n.text.split()[-1]): n for n in noted}
    found: dict[str, list[float]] = {name: [] for name in TIMES}
    for timing in level.timings:
        server = by_number[int(timing.prompt.split(":")[1])]
        if timing.failure:
            continue
        # A closed loop's request is due when it is sent; the server has read it a moment later.
        due = level.begin + timing.started
        ttft, e2e = server.written[0] - due, server.ended - due
        found["ttft"].append(1000 * ttft)
        found["e2e"].append(1000 * e2e)
        found["tpot"].append(1000 * (e2e - ttft) / (len(server.written) - 1))
        found["itl"] += list(1000 * np.diff(server.written))
    return found


def misses(summary: LevelSummary, server: dict[str, list[float]]) -> list[str]:
    """Return every statistic that is off by more than 2 ms and more than 2 %."""
    found = []
    for name, values in server.items():
        statistics = {"mean": float(np.mean(values))}
        statistics |= {word: float(np.percentile(values, 100 * fraction)) for word, fraction in FRACTIONS.items()}
        for word, truth in statistics.items():
            told = summary[f"{name}_{word}_ms"]
            if told is None or abs(told - truth) > max(2.0, 0.02 * truth):
                found.append(f"{name} {word}: told {told}, was {truth:.3f}")
    return found


def within(script: list[Stream], *, concurrency: int | None, rate: float | None = None, **limits: float) -> LevelRun:
    """Measure until nothing misses, or fail with what missed the last time."""
    missed: list[str] = []
    for _ in range(ATTEMPTS):
        with server_process(script) as server:
            target = Target(server.url, "m", **limits)
            level = run_level(target, requests(len(script), rate), concurrency=concurrency, rate=rate)
            noted = server.stop()
        assert len(level.timings) == len(script) == len(noted)
        missed = misses(summarise(level), expected(level, noted))
        if not missed:
            return level
    pytest.fail("\n".join(missed))


def test_fixed_delays() -> None:
    level = within([Stream(0.03, (0.01,) * 9)] * 60, concurrency=12)
    assert not any(timing.failure for timing in level.timings)


def test_long_tails() -> None:
    generator = random.Random(3)

    def delay(median: float, sigma: float, most: float) -> float:
        return min(most, median * generator.lognormvariate(0.0, sigma))

    script = [Stream(delay(0.03, 0.9, 0.5), tuple(delay(0.005, 1.0, 0.08) for _ in range(8))) for _ in range(100)]
    within(script, concurrency=16)


def test_an_open_loop() -> None:
    within([Stream(0.2 if i % 10 == 0 else 0.02, (0.01,) * 4) for i in range(60)], concurrency=None, rate=60.0)


FAILING = {
    3: (Stream(0.01, (0.01,) * 3, stop_after=2), "disconnect"),
    10: (Stream(0.01, status=500), "http_500"),
    17: (Stream(0.01, status=429), "http_429"),
    24: (Stream(0.01, stall=True), "stall"),
    31: (Stream(silent=True), "timeout"),
    38: (Stream(0.01, (0.01,), finish=False), "truncated"),
    45: (Stream(0.01, (0.01,), batch=0), "empty"),
    52: (Stream(0.01, (0.01,), malformed=True), "malformed"),
}


def test_failures_are_all_accounted_for_and_spoil_no_time() -> None:
    """Stalls, silence, disconnects, HTTP errors and broken streams among answers whose times stay exact."""
    good = Stream(0.03, (0.01,) * 5)
    script = [FAILING[i][0] if i in FAILING else good for i in range(60)]
    level = within(script, concurrency=8, timeout_seconds=1.2, stall_seconds=0.6)
    told = {int(timing.prompt.split(":")[1]): timing.failure for timing in level.timings}
    assert told == {i: FAILING[i][1] if i in FAILING else "" for i in range(60)}
    summary = summarise(level)
    assert summary["num_requests"] == 60 and summary["num_failed"] == len(FAILING)
    assert sum(int(v or 0) for k, v in summary.items() if k.startswith("failed_") and k != "failed_fraction") == 8
    assert summary["failed_fraction"] == pytest.approx(8 / 60, abs=1e-4)


def test_percentiles_agree_with_numpy_on_the_same_values() -> None:
    values = [random.Random(5).lognormvariate(3, 1) for _ in range(997)]
    for fraction in FRACTIONS.values():
        assert percentile(values, fraction) == pytest.approx(float(np.percentile(values, 100 * fraction)), rel=1e-12)
