"""The load test against an endpoint whose delays are known: what is counted, what fails and why, what ends a level.

Times here are only bounded, by the script from below and by a slack for busy machines from above; how exact they are is
`test_bench_exactness.py`'s business.
"""

from __future__ import annotations

import shutil
import signal
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scripted_stream_server import ScriptedStreamServer, Stream, interrupt_at
from tunesmith.bench.client import LevelRun, Target, run_level
from tunesmith.bench.levels import Level, levels_of, measure, was_stopped
from tunesmith.bench.outcome import speeds_of
from tunesmith.bench.summary import summarise
from tunesmith.bench.traffic import Asking, Prompt, Request
from tunesmith.errors import BenchError
from tunesmith.recipe.schema import Bench, Targets

SLACK = 2.0  # seconds that a loaded machine may add to one request


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"rows.jsonl:{i}", ({"role": "user", "content": f"number {i}"},)) for i in range(count)]


def requests(count: int, due: list[float] | None = None) -> list[Request]:
    return [Asking("m", 8).request(p, due[i] if due else 0.0) for i, p in enumerate(prompts(count))]


def target(url: str, **limits: float) -> Target:
    return Target(url, "m", **({"timeout_seconds": 20.0} | limits))


def run(server: ScriptedStreamServer, count: int, concurrency: int, **limits: float) -> LevelRun:
    return run_level(target(server.url, **limits), requests(count), concurrency=concurrency)


def test_times_are_those_of_the_script() -> None:
    with ScriptedStreamServer(lambda request, number: Stream(0.1, (0.05, 0.1, 0.05))) as server:
        level = run(server, 12, 4)
    assert server.most_in_flight == 4
    assert server.num_connections == 4, "connections are kept"
    for timing in level.timings:
        assert timing.failure == ""
        assert timing.ttft is not None and 0.1 <= timing.ttft < 0.1 + SLACK
        assert timing.e2e is not None and 0.3 <= timing.e2e < 0.3 + SLACK
        assert timing.num_output_tokens == 4 and timing.num_prompt_tokens == 7
        assert timing.tpot == pytest.approx((timing.e2e - timing.ttft) / 3)
        assert len(timing.itl) == 3 and sum(timing.itl) == pytest.approx(0.2, abs=SLACK)
    assert 3 * 0.3 <= level.wall_seconds < 3 * (0.3 + SLACK)
    summary = summarise(level)
    assert summary["num_requests"] == 12 and summary["num_failed"] == 0
    assert summary["mean_output_tokens"] == 4 and summary["tokens_per_event"] == 1
    assert summary["output_tokens_per_second"] == pytest.approx(48 / level.wall_seconds, rel=1e-3)


SCRIPT = {
    0: Stream(gaps=(0.0,), stop_after=1),
    1: Stream(status=500),
    2: Stream(gaps=(0.0,), garbage=b"data: {not json\n\n"),
    3: Stream(stall=True),
    4: Stream(gaps=(0.0,), garbage=b'data: {"error": {"message": "out of memory"}}\n\n'),
    5: Stream(status=429),
    6: Stream(gaps=(0.0,), garbage=b"data: [1]\n\n"),
    7: Stream(silent=True),
    8: Stream(finish=False),
    9: Stream(batch=0),
    10: Stream(body=b"<html>busy</html>"),
    11: Stream(stop_after=0),
}
KINDS = {
    "disconnect": 2,
    "http_500": 1,
    "http_429": 1,
    "malformed": 3,
    "stall": 1,
    "timeout": 1,
    "error": 1,
    "truncated": 1,
    "empty": 1,
}


def test_every_failure_is_counted_by_its_kind() -> None:
    with ScriptedStreamServer(lambda request, number: SCRIPT.get(number, Stream(gaps=(0.0,)))) as server:
        level = run(server, 16, 2, timeout_seconds=1.5, stall_seconds=0.5)
    summary = summarise(level, Targets(ttft_p95_ms=1400.0))
    assert summary["num_requests"] == 16 and summary["num_failed"] == 12
    kinds = {key: value for key, value in summary.items() if key.startswith("failed_") and key != "failed_fraction"}
    assert kinds == {f"failed_{kind}": count for kind, count in KINDS.items()}
    assert summary["failed_fraction"] == 0.75 and summary["good_fraction"] == 0.25, "over all requests"
    assert summary["mean_output_tokens"] == 2
    assert all(timing.detail and timing.gone is not None for timing in level.timings if timing.failure)
    by_kind = {timing.failure: timing for timing in level.timings}
    assert "as the script says" in by_kind["http_500"].detail
    assert by_kind["stall"].num_events == 1, "what came is noted"
    assert 0.5 <= (by_kind["stall"].gone or 0) < 0.5 + SLACK
    assert 1.5 <= (by_kind["timeout"].gone or 0) < 1.5 + SLACK


def test_a_server_that_closes_every_connection_is_no_failure() -> None:
    with ScriptedStreamServer(lambda request, number: Stream(close=True)) as server:
        level = run(server, 6, 2)
    assert [timing.failure for timing in level.timings] == [""] * 6
    assert server.num_connections == 6


def test_warm_up_is_sent_and_not_timed() -> None:
    with ScriptedStreamServer(lambda request, number: Stream(0.5 if number < 3 else 0.0)) as server:
        level = run_level(target(server.url), requests(4), concurrency=3, warmup=requests(3))
    assert len(server.requests) == 7
    assert len(level.timings) == 4
    assert all(timing.ttft is not None and timing.ttft < 0.5 for timing in level.timings)


def test_tokens_are_counted_as_events_where_the_server_reports_no_usage() -> None:
    with ScriptedStreamServer(lambda request, number: Stream(gaps=(0.0, 0.0), usage=False)) as server:
        levels = measure(target(server.url), [Level("c1", tuple(requests(2)), concurrency=1)])
    summary = summarise(levels["c1"])
    assert summary["mean_output_tokens"] == 3
    assert summary["num_without_usage"] == 2


def test_events_of_several_tokens_are_told_apart_from_tokens() -> None:
    script = [Stream(gaps=(0.02,) * 4, batch=5), Stream(gaps=(0.02,) * 4, per_write=5)]
    with ScriptedStreamServer(lambda request, number: script[number]) as server:
        levels = measure(target(server.url), [Level(f"c{n}", tuple(requests(1)), concurrency=1) for n in (1, 2)])
    told = speeds_of(levels, Targets(), None, seconds=1.0).warnings
    several, apart = (summarise(level) for level in levels.values())
    assert several["mean_output_tokens"] == apart["mean_output_tokens"] == 25
    assert several["tokens_per_event"] == 5 and apart["tokens_per_event"] == 1
    assert len(levels["c1"].timings[0].itl) == 4 and min(levels["c1"].timings[0].itl) > 0.01
    assert len(levels["c2"].timings[0].itl) == 24, "events that arrive together are no time apart"
    assert sum(gap < 0.01 for gap in levels["c2"].timings[0].itl) >= 20
    assert len(told) == 1 and told[0].startswith("c1: the server sends 5.0 tokens per event")


def test_requests_carry_what_was_asked() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    prompt = Prompt("a:1", ({"role": "user", "content": "é"},), (tool,))
    with ScriptedStreamServer(lambda request, number: Stream()) as server:
        for api in ("chat", "completions"):
            asked = [Asking("model-name", 33, api).request(prompt)]  # type: ignore[arg-type]
            run_level(target(f"{server.url}/"), asked, concurrency=1)
        run_level(
            target(server.url), [Asking("m", 9, extra={"max_tokens": None, "n": 1}).request(prompt)], concurrency=1
        )
    chat, bare, extra = server.requests
    assert "max_tokens" not in extra and extra["n"] == 1 and "min_tokens" not in extra
    for request in (chat, bare):
        assert request["model"] == "model-name" and request["max_tokens"] == 33 and request["stream"] is True
        assert request["stream_options"] == {"include_usage": True}
    assert chat["messages"] == [{"role": "user", "content": "é"}] and chat["tools"] == [tool]
    assert bare["prompt"] == "é" and "tools" not in bare


def test_when_nothing_was_answered_the_commonest_reason_is_told() -> None:
    levels = [Level(f"c{n}", tuple(requests(2)), concurrency=n) for n in (1, 2)]
    with ScriptedStreamServer(lambda request, number: Stream(status=503 if number else 500)) as server:
        url = server.url
        with pytest.raises(BenchError, match=r"3 times: http_503: .*as the script says"):
            measure(target(url), levels)
    with pytest.raises(BenchError, match="connect"):
        measure(target(url), levels[:1])
    with pytest.raises(BenchError, match="connect"):
        measure(target("http://no-such-host.invalid"), levels[:1])


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    both = tmp_path / "both.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *subject]
    subprocess.run([*command, "-keyout", str(both), "-out", f"{both}.cert"], check=True, capture_output=True)
    both.write_text(both.read_text() + Path(f"{both}.cert").read_text())
    return both


def test_tls_is_spoken_and_certificates_are_checked(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with ScriptedStreamServer(lambda request, number: Stream(gaps=(0.0,)), tls) as server:
        (refused,) = run(server, 1, 1).timings
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        level = run(server, 4, 2)
    assert refused.failure == "connect" and "certificate" in refused.detail
    assert [timing.failure for timing in level.timings] == [""] * 4
    assert [timing.num_output_tokens for timing in level.timings] == [2] * 4


def test_levels_are_measured_one_after_the_other() -> None:
    bench = Bench(concurrency=(5, 1), rates=(20.0,), num_requests=10, num_warmup_requests=1)
    with ScriptedStreamServer(lambda request, number: Stream(0.05)) as server:
        found = measure(target(server.url), levels_of(bench, prompts(40), Asking("m", 8), seed=0))
    assert list(found) == ["c1", "c5", "r20"]
    assert [len(level.timings) for level in found.values()] == [10, 10, 10]
    assert len(server.requests) == 33 and len({noted.text for noted in server.noted}) == 33, "every prompt is new"
    assert found["c5"].wall_seconds < found["c1"].wall_seconds


def test_an_open_loop_does_not_wait_for_a_slow_server() -> None:
    """One answer takes 0.6 s; the others are sent meanwhile, each in its turn."""
    due = [0.05 * i for i in range(10)]
    with ScriptedStreamServer(lambda request, number: Stream(0.6 if number == 0 else 0.0)) as server:
        level = run_level(target(server.url), requests(10, due), rate=20.0)
    assert [timing.started for timing in level.timings] == pytest.approx(due, abs=1e-9)
    assert level.wall_seconds >= 0.6
    arrived = [noted.arrived - level.begin for noted in server.noted]
    assert all(moment >= planned for moment, planned in zip(arrived, due, strict=True)), "never before its turn"
    assert summarise(level)["sent_late_p99_ms"] is not None


def test_waiting_that_a_stopped_server_causes_is_in_the_latency() -> None:
    """The server reads nothing for half a second: requests due meanwhile have waited, and their times say so."""

    def freeze(request: dict[str, Any], number: int) -> Stream:
        if number == 0:
            time.sleep(0.5)  # the whole server stands still
        return Stream()

    due = [0.05 * i for i in range(8)]
    with ScriptedStreamServer(freeze) as server:
        level = run_level(target(server.url), requests(8, due), rate=20.0)
    for timing, planned in zip(level.timings, due, strict=True):
        assert timing.ttft is not None and timing.ttft >= 0.5 - planned - 0.02


def test_a_level_ends_at_its_limit_and_fails_its_targets() -> None:
    with ScriptedStreamServer(lambda request, number: Stream(silent=number > 2)) as server:
        levels = measure(target(server.url, level_seconds=1.5), [Level("c2", tuple(requests(20)), concurrency=2)])
    level = levels["c2"]
    assert level.ended_by == "limit" and not was_stopped(levels)
    assert len(level.timings) == 3 and level.num_unfinished == 2 and level.num_unsent == 15
    assert level.wall_seconds < 1.5 + SLACK


def test_ctrl_c_ends_the_level_with_what_it_has() -> None:
    before = signal.getsignal(signal.SIGINT)
    with ScriptedStreamServer(lambda request, number: Stream(silent=number >= 6)) as server:
        interrupt_at(server, 1 + 5 + 2)  # warm-up, answered, silent
        levels = measure(
            target(server.url),
            [Level(f"c{n}", tuple(requests(40)), concurrency=n, warmup=tuple(requests(1))) for n in (2, 4)],
        )
    assert list(levels) == ["c2"] and was_stopped(levels)
    level = levels["c2"]
    assert len(level.timings) == 5 and level.num_unfinished == 2 and level.num_unsent == 33
    assert level.signal_number == signal.SIGINT
    speeds = speeds_of(levels, Targets(ttft_p95_ms=1e6), None, seconds=1.0)
    assert speeds.partial and not speeds.targets[0]["passed"]
    assert any("ended early by a signal, with 2 requests in flight and 33 not sent" in text for text in speeds.warnings)
    assert signal.getsignal(signal.SIGINT) is before
