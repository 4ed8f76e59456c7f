"""The real command against real servers that stop behaving in the middle: all accounted for, then only the missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "tests/fakes/misbehaving_server.py"
NUM_ROWS, NUM_GOOD = 60, 20
# Behaviour -> the kinds of failed requests it may cause, besides items that were given up.
KINDS = {
    "exit": {"connection"},
    "hang": {"timeout"},
    "http_500": {"http_500"},
    "truncate": {"connection"},
    "not_json": {"malformed"},
    "not_http": {"connection"},
    "drip": {"timeout"},
}


class Case:
    """One behaviour, in a directory of its own."""

    def __init__(self, behaviour: str, here: Path) -> None:
        self.behaviour, self.here = behaviour, here
        here.mkdir()
        rows = [{"prompt": f"say {i}", "completion": str(i)} for i in range(NUM_ROWS)]
        (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tasks = {"text": {"files": [str(here / "rows.jsonl")], "metrics": ["exact_match"]}, "concurrency": 4}
        (here / "tasks.yaml").write_text(json.dumps({"evaluate": tasks | {"request_timeout_seconds": 1.0}}))
        self.port = 0  # until a server has one; later ones come back at the same address

    def serve(self, behaviour: str, log: str) -> subprocess.Popen[bytes]:
        options = ["--port", str(self.port), "--behaviour", behaviour, "--after", str(NUM_GOOD)]
        command = [sys.executable, str(SERVER), *options, "--log", str(self.here / log)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert server.stdout is not None
        self.port = int(server.stdout.readline())
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/models", timeout=5).read()
                return server
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the server did not start")

    def start(self) -> subprocess.Popen[str]:
        url = f"http://127.0.0.1:{self.port}/v1"
        words = ["evaluate", str(self.here / "tasks.yaml"), "--endpoint", url, "--model", "model", "--json"]
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}"}
        command = [sys.executable, "-m", "tunesmith", *words, "--output-dir", str(self.here / "outputs")]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)

    def evaluate(self) -> subprocess.CompletedProcess[str]:
        process = self.start()
        output, errors = process.communicate(timeout=180)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def run(self) -> dict[str, Any]:
        """Evaluate while the server goes bad, and again when it is well; return what both left."""
        server = self.serve(self.behaviour, "asked.txt")
        try:
            first = self.evaluate()
        finally:
            server.kill()
            server.wait()
        found = {"first": first, "first_items": self.items()}
        server = self.serve("none", "asked again.txt")
        try:
            found["second"] = self.evaluate()
        finally:
            server.kill()
            server.wait()
        return found | {"second_items": self.items()}

    def items(self) -> list[dict[str, Any]]:
        (path,) = (self.here / "outputs/runs").glob("2*/evaluate/text.items.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()]

    def asked(self, log: str) -> list[str]:
        return (self.here / log).read_text().splitlines()


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Case, dict[str, Any]]]:
    """All behaviours at once: they mostly wait."""
    here = tmp_path_factory.mktemp("endpoints")
    made = [Case(behaviour, here / behaviour) for behaviour in KINDS]
    with ThreadPoolExecutor(len(made)) as pool:
        return {case.behaviour: (case, found) for case, found in zip(made, pool.map(Case.run, made), strict=True)}


@pytest.mark.parametrize("behaviour", KINDS)
def test_an_endpoint_that_goes_bad_in_the_middle(behaviour: str, cases: dict[str, tuple[Case, dict[str, Any]]]) -> None:
    case, found = cases[behaviour]
    first, items = found["first"], found["first_items"]
    assert "Traceback" not in first.stderr and first.returncode == 5, first.stderr
    scores = json.loads(first.stdout)["scores"]
    answered = [item for item in items if item["tuned"]["answered"]]
    lost = [item for item in items if not item["tuned"]["answered"]]
    assert len(items) == NUM_ROWS and len(answered) == NUM_GOOD == len(case.asked("asked.txt"))
    assert all(item["tuned"]["correct"] for item in answered) and not any(item["tuned"]["correct"] for item in lost)
    kinds = {item["tuned"]["error"].removeprefix("request_failed:") for item in lost}
    assert kinds & KINDS[behaviour] and kinds <= KINDS[behaviour] | {"connection", "not_asked"}
    assert sum(scores["failures"]["text"]["tuned"].values()) == len(lost) == scores["num_unanswered"]
    record = scores["tasks"]["text"]["exact_match"]
    assert record["tuned_num_failed"] == len(lost) and record["tuned"] == pytest.approx(NUM_GOOD / NUM_ROWS)
    assert "not answered" in first.stderr and "give the same command again" in first.stderr

    second, items = found["second"], found["second_items"]
    assert second.returncode == 0, second.stderr
    assert sorted(case.asked("asked again.txt")) == sorted(item["prompt_tail"] for item in lost)
    assert len(items) == NUM_ROWS and all(item["tuned"]["correct"] for item in items)
    assert json.loads(second.stdout)["run"] == json.loads(first.stdout)["run"]


def test_nobody_there(tmp_path: Path) -> None:
    done = Case("none", tmp_path / "nobody").evaluate()
    assert done.returncode == 5 and "nobody answers there" in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_keeps_every_answer(tmp_path: Path) -> None:
    """SIGINT while requests hang: exit 75 with what to do, and the same command asks only the missing."""
    case = Case("hang", tmp_path / "interrupted")
    tasks = json.loads((case.here / "tasks.yaml").read_text())
    tasks["evaluate"]["request_timeout_seconds"] = 60.0
    (case.here / "tasks.yaml").write_text(json.dumps(tasks))
    server = case.serve("hang", "asked.txt")
    try:
        process = case.start()
        answers = case.here / "outputs/runs/latest/evaluate/answers.tuned.jsonl"
        deadline = time.monotonic() + 60
        while not (answers.exists() and answers.read_bytes().count(b"\n") == NUM_GOOD):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        server.kill()
        server.wait()
    assert process.returncode == 75 and "Traceback" not in errors, errors
    state = json.loads((case.here / "outputs/runs/latest/run.json").read_text())
    assert state["state"] == "interrupted"
    server = case.serve("none", "asked again.txt")
    try:
        done = case.evaluate()
    finally:
        server.kill()
        server.wait()
    assert done.returncode == 0, done.stderr
    assert len(case.asked("asked again.txt")) == NUM_ROWS - NUM_GOOD
