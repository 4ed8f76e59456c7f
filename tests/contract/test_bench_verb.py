"""`tunesmith bench` as people type it: a real command, a real socket, the files it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scripted_stream_server import ScriptedStreamServer, Stream
from tunesmith.artifacts import Speeds
from tunesmith.load_test import _in_bench

KNOWN = {  # so that the client is not measured each time
    "requests_per_second": 1e4,
    "tokens_per_second": 1e5,
    "lateness_median_ms": 0.05,
    "lateness_p99_ms": 0.1,
}


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    from tunesmith.bench import own_limits

    known: list[str] = []

    def measured(machine: str) -> own_limits.Limits:
        known.append(machine)
        return own_limits.Limits(**KNOWN, measured_at=time.time(), machine=machine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_limits, "_measure", measured)
        own_limits.own_limits(tmp_path / "outputs" / "cache" / "load-generator.json")
    return tmp_path / "outputs"


def command(target: str, outputs: Path, *words: str) -> list[str]:
    settings = [word for pair in words if "=" in pair for word in ("--set", pair)]
    flags = [word for word in words if "=" not in word]
    place = ["--output-dir", str(outputs), "--out", str(outputs / "out")]
    return [sys.executable, "-m", "tunesmith", "bench", target, *flags, *settings, *place]


def run(target: str, outputs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OPENAI_API_KEY": "sk-secret-of-the-test"}
    return subprocess.run(command(target, outputs, *words), capture_output=True, text=True, env=environment, timeout=60)


def result(outputs: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((outputs / "out" / "result.json").read_text())
    return document


def test_an_endpoint_is_measured_and_judged(outputs: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"question {i}", "completion": "x"}) + "\n" for i in range(30)))
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps({"timestamp": i / 20, "prompt": f"traced {i}"}) + "\n" for i in range(5)))
    words = [f"prompts={rows}", f"trace={trace}", "concurrency=1,4", "rates=40", "num_requests=8"]
    words += ["targets.ttft_p95_ms=5000", "targets.output_tokens_per_second=1e9", "--model", "my-model"]
    with ScriptedStreamServer(lambda request, number: Stream(0.01, (0.005,) * 3)) as server:
        done = run(f"{server.url}/v1/", outputs, *words)
        asked = server.requests
    assert done.returncode == 6, done.stderr
    assert {request["model"] for request in asked} == {"my-model"} and len(asked) == 3 * 10 + 5 + 2
    found = result(outputs)
    assert found["endpoint"] == {"url": server.url, "model": "my-model"}
    assert list(found["levels"]) == ["c1", "c4", "r40", "trace"]
    assert [level["num_requests"] for level in found["levels"].values()] == [8, 8, 8, 5]
    verdicts = {(v["target"], v["level"]): v["passed"] for v in found["targets"]}
    assert all(verdicts[("ttft_p95_ms", level)] for level in found["levels"])
    assert not verdicts[("output_tokens_per_second", "c4")]
    plain = {key: value for key, value in found.items() if key not in ("endpoint", "bench", "seed", "ended")}
    assert Speeds.from_json(plain).client["tokens_per_second"] == 1e5
    lines = (outputs / "out" / "requests.jsonl").read_text().splitlines()
    assert len(lines) == 29 and found["requests"] == "requests.jsonl"
    assert "first token p95 ≤ 5,000 ms:  c1 ✓   c4 ✓   r40 ✓   trace ✓" in done.stdout
    assert "late p99, ms" in done.stdout and "of a core" in done.stdout
    assert "load generator: up to 10,000 requests/s" in done.stderr
    assert "sk-secret" not in done.stdout + done.stderr + (outputs / "out" / "result.json").read_text()


def test_ctrl_c_leaves_what_was_measured(outputs: Path) -> None:
    words = ["prompt_tokens=20", "concurrency=2", "num_requests=50", "--model", "m"]
    with ScriptedStreamServer(lambda request, number: Stream(silent=number >= 14)) as server:
        process = subprocess.Popen(command(server.url, outputs, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while len(server.requests) < 16:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        printed, told = process.communicate(timeout=20)
    assert process.returncode == 75, told.decode()
    found = result(outputs)
    assert found["partial"] is True
    level = found["levels"]["c2"]
    assert (level["num_requests"], level["num_unfinished"], level["num_unsent"]) == (10, 2, 38)
    assert b"not measured" in printed and b"partial result" in told


@pytest.mark.parametrize(
    ("target", "words", "code", "told"),
    [
        ("http://127.0.0.1:9", ["--model", "m"], 5, "does not answer"),
        ("http://127.0.0.1:9", [], 5, "there is no answer"),
        ("nowhere://x", ["--model", "m"], 2, "not an http or https URL"),
        ("no-such-run", [], 2, "there is no run 'no-such-run'"),
        ("http://127.0.0.1:9", ["concurency=3"], 2, "did you mean `bench.concurrency`"),
        ("http://127.0.0.1:9", ["prompt_tokens=long"], 2, "256-1024"),
        ("http://127.0.0.1:9", ["concurrency=[]"], 2, "neither `bench.rates` nor a `bench.trace`"),
        ("http://127.0.0.1:9", ["trace=none.jsonl", "--model", "m"], 3, "the trace cannot be read"),
    ],
)
def test_mistakes_are_told(outputs: Path, target: str, words: list[str], code: int, told: str) -> None:
    done = run(target, outputs, *words)
    assert done.returncode == code and told in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (outputs / "out" / "result.json").exists()


def test_short_settings() -> None:
    assert _in_bench("concurrency=1,8") == "bench.concurrency=[1,8]"
    assert _in_bench("targets.ttft_p95_ms=500") == "bench.targets.ttft_p95_ms=500"
    assert _in_bench("seed=3") == "seed=3" and _in_bench("bench.rates=2,4") == "bench.rates=[2,4]"
    assert _in_bench("prompts=['a,b']") == "bench.prompts=['a,b']" and _in_bench("prompt_tokens=5-9").endswith("=5-9")
