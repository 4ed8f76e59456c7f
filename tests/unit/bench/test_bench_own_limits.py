"""The load generator against a server that does nothing: its own limits, and when they are told."""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.request
from pathlib import Path

import pytest

from tunesmith.bench import own_limits
from tunesmith.bench.client import Target, run_level
from tunesmith.bench.own_limits import Limits, complaints, null_server
from tunesmith.bench.traffic import Asking, Prompt

PROMPT = Prompt("p", ({"role": "user", "content": "x"},))
KNOWN = Limits(1000.0, 50_000.0, 0.1, 0.5, 0.0, "m")


@pytest.mark.parametrize(
    ("path", "num_tokens"), [("", 1), ("/1/1/0", 1), ("/50/1/0", 50), ("/50/8/0", 50), ("/9/3/1/4", 9), ("/1/1/0/5", 1)]
)
def test_the_null_server_sends_what_the_path_says(path: str, num_tokens: int) -> None:
    with null_server() as url:
        level = run_level(Target(url + path, "null"), [Asking("null", 8).request(PROMPT)] * 5, concurrency=2)
        with urllib.request.urlopen(f"{url}/v1/models") as answer:
            assert json.load(answer)["data"][0]["id"] == "null-model"
    for timing in level.timings:
        assert (timing.failure, timing.num_output_tokens, timing.num_events) == ("", num_tokens, num_tokens)


def test_a_big_stream_survives_a_slow_reader() -> None:
    """More than the sockets hold: the null server waits for room, and nothing is lost."""
    with null_server() as url:
        level = run_level(Target(f"{url}/40000/500/0", "null"), [Asking("null", 8).request(PROMPT)] * 2, concurrency=2)
    assert [timing.num_events for timing in level.timings] == [40_000, 40_000]


def test_stamps_are_compared_by_one_clock() -> None:
    with null_server() as url:
        late = asyncio.run(own_limits._lateness(f"{url}/25/1/5", num_streams=4))
    assert len(late) == 100 and 0 <= min(late) < 0.05, "a token is not seen before it is written"


def test_limits_are_measured_once_a_day_and_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def measured(machine: str) -> Limits:
        calls.append(machine)
        return Limits(1.0, 2.0, 3.0, 4.0, time.time(), machine)

    monkeypatch.setattr(own_limits, "_measure", measured)
    file = tmp_path / "cache" / "limits.json"
    first = own_limits.own_limits(file)
    assert own_limits.own_limits(file) == first and len(calls) == 1
    for spoilt in ("", "[]", json.dumps({"machine": "other"}), file.read_text().replace(first.machine, "another")):
        file.write_text(spoilt)
        own_limits.own_limits(file)
    assert len(calls) == 5
    old = json.loads(file.read_text()) | {"measured_at": time.time() - 90_000}
    file.write_text(json.dumps(old))
    own_limits.own_limits(file)
    assert len(calls) == 6


def test_the_client_is_measured_for_real(tmp_path: Path) -> None:
    limits = own_limits.own_limits(tmp_path / "limits.json")
    assert limits.requests_per_second > 100 and limits.tokens_per_second > 1000
    assert 0 <= limits.lateness_median_ms <= limits.lateness_p99_ms
    assert str(os.uname().nodename) in limits.machine
    assert f"{limits.tokens_per_second:,.0f} streamed tokens/s" in limits.sentence()


def test_results_near_the_limits_are_said_to_be() -> None:
    far = {"requests_per_second": 10.0, "output_tokens_per_second": 900.0, "ttft_median_ms": 90.0, "itl_median_ms": 9.0}
    assert complaints(KNOWN, "c1", far) == []
    near = {
        "requests_per_second": 700.0,
        "output_tokens_per_second": 30_000.0,
        "ttft_median_ms": 2.0,
        "itl_median_ms": 1.0,
    }
    told = complaints(KNOWN, "c1", near)
    assert len(told) == 3 and "70%" in told[0] and "60%" in told[1]
    assert "median time to first token 2.00 ms, inter-token latency 1.00 ms" in told[2]
    assert complaints(KNOWN, "c1", {"requests_per_second": None, "ttft_median_ms": None}) == []
