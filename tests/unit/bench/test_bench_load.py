"""The load test against an endpoint whose delays are known.

A measured time is never below the scripted delay, and above it by less than the slack that a busy machine may add.
"""

from __future__ import annotations

import pytest

from tests.fakes.scripted_stream_server import ScriptedStreamServer, Stream
from tunesmith.bench.client import LevelRun, Target, run_level
from tunesmith.bench.stage import Load, measure
from tunesmith.bench.summary import summarise
from tunesmith.bench.traffic import Prompt
from tunesmith.errors import BenchError

SLACK = 0.6  # seconds that a loaded machine may add to one request


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"rows.jsonl:{i}", ({"role": "user", "content": f"number {i}"},)) for i in range(count)]


def run(server: ScriptedStreamServer, count: int, **options: object) -> LevelRun:
    target = Target(server.url, "m", timeout_seconds=float(options.pop("timeout_seconds", 20.0)))  # type: ignore[arg-type]
    return run_level(target, prompts(count), max_tokens=8, **options)  # type: ignore[arg-type]


def test_times_are_those_of_the_script() -> None:
    with ScriptedStreamServer(lambda request, number: Stream(0.2, (0.05, 0.1, 0.15))) as server:
        level = run(server, 12, concurrency=4)
    assert server.most_in_flight == 4
    assert server.num_connections == 4, "connections are kept"
    for timing in level.timings:
        assert timing.failure == ""
        assert timing.ttft is not None and 0.2 <= timing.ttft < 0.2 + SLACK
        assert timing.e2e is not None and 0.5 <= timing.e2e < 0.5 + SLACK
        assert timing.num_output_tokens == 4 and timing.num_prompt_tokens == 7
        assert timing.tpot == pytest.approx((timing.e2e - timing.ttft) / 3)
        assert len(timing.itl) == 3 and sum(timing.itl) == pytest.approx(0.3, abs=SLACK)
    assert 3 * 0.5 <= level.wall_seconds < 3 * (0.5 + SLACK)
    summary = summarise(level)
    assert summary["num_requests"] == 12 and summary["num_failed"] == 0
    assert summary["mean_output_tokens"] == 4
    rate = summary["output_tokens_per_second"]
    assert rate == pytest.approx(48 / level.wall_seconds, rel=1e-3)
    assert 200 <= float(summary["ttft_median_ms"] or 0) < 200 + 1000 * SLACK


def test_a_slow_tail_is_in_the_tail() -> None:
    with ScriptedStreamServer(lambda request, number: Stream(0.9 if number >= 18 else 0.0)) as server:
        summary = summarise(run(server, 20, concurrency=10))
    assert float(summary["ttft_median_ms"] or 0) < 1000 * SLACK
    assert 900 <= float(summary["ttft_p99_ms"] or 0) < 900 + 1000 * SLACK
    assert 900 <= float(summary["ttft_p95_ms"] or 0) < 900 + 1000 * SLACK


def test_every_failure_is_counted_by_its_kind() -> None:
    script = {
        0: Stream(gaps=(0.0,), stop_after=1),
        1: Stream(status=500),
        2: Stream(gaps=(0.0,), garbage=b"data: {not json\n\n"),
        3: Stream(stall=True),
        4: Stream(gaps=(0.0,), garbage=b'data: {"error": {"message": "out of memory"}}\n\n'),
        5: Stream(status=429),
        6: Stream(gaps=(0.0,), garbage=b"data: [1]\n\n"),
    }
    with ScriptedStreamServer(lambda request, number: script.get(number, Stream(gaps=(0.0,)))) as server:
        level = run(server, 10, concurrency=2, timeout_seconds=1.5)
    summary = summarise(level)
    assert summary["num_failed"] == 7
    kinds = {key: value for key, value in summary.items() if key.startswith("failed_")}
    assert kinds == {
        "failed_disconnect": 1,
        "failed_http_500": 1,
        "failed_malformed": 2,
        "failed_timeout": 1,
        "failed_error": 1,
        "failed_http_429": 1,
    }
    assert summary["mean_output_tokens"] == 2
    assert all(timing.detail for timing in level.timings if timing.failure)
    assert "as the script says" in next(t.detail for t in level.timings if t.failure == "http_500")


def test_a_server_that_closes_every_connection_is_no_failure() -> None:
    with ScriptedStreamServer(lambda request, number: Stream(close=True)) as server:
        level = run(server, 6, concurrency=2)
    assert [timing.failure for timing in level.timings] == [""] * 6
    assert server.num_connections == 6


def test_warm_up_is_sent_and_not_timed() -> None:
    with ScriptedStreamServer(lambda request, number: Stream(0.5 if number < 3 else 0.0)) as server:
        level = run(server, 4, concurrency=3, num_warmup=3)
    assert len(server.requests) == 7
    assert len(level.timings) == 4
    assert all(timing.ttft is not None and timing.ttft < 0.5 for timing in level.timings)


def test_tokens_are_counted_as_events_where_the_server_reports_no_usage() -> None:
    with ScriptedStreamServer(lambda request, number: Stream(gaps=(0.0, 0.0), usage=False)) as server:
        summary = summarise(run(server, 2, concurrency=1))
    assert summary["mean_output_tokens"] == 3
    assert summary["num_without_usage"] == 2


def test_requests_carry_what_was_asked() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with ScriptedStreamServer(lambda request, number: Stream()) as server:
        prompt = Prompt("a:1", ({"role": "user", "content": "é"},), (tool,))
        run_level(Target(f"{server.url}/", "model-name"), [prompt], concurrency=1, max_tokens=33)
    (request,) = server.requests
    assert request["model"] == "model-name" and request["max_tokens"] == 33 and request["stream"] is True
    assert request["stream_options"] == {"include_usage": True}
    assert request["messages"] == [{"role": "user", "content": "é"}] and request["tools"] == [tool]


def test_when_nothing_was_answered_the_commonest_reason_is_told() -> None:
    with ScriptedStreamServer(lambda request, number: Stream(status=503 if number else 500)) as server:
        url = server.url
        with pytest.raises(BenchError, match=r"3 times: http_503: .*as the script says"):
            measure(Target(url, "m"), prompts(2), Load((1, 2), 2, 8))
    with pytest.raises(BenchError, match="connect"):
        measure(Target(url, "m"), prompts(2), Load((1,), 2, 8))


def test_levels_are_measured_one_after_the_other() -> None:
    with ScriptedStreamServer(lambda request, number: Stream(0.05)) as server:
        levels = measure(Target(server.url, "m"), prompts(3), Load((1, 5), 10, 8, num_warmup_requests=1))
    assert list(levels) == ["c1", "c5"]
    assert [len(level.timings) for level in levels.values()] == [10, 10]
    assert len(server.requests) == 22 and server.most_in_flight == 5
    assert levels["c5"].wall_seconds < levels["c1"].wall_seconds
