"""`kill -9` at every stage, then the same command: it completes, and no finished stage runs again."""

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

ROOT = Path(__file__).parent.parent.parent
STAGES = ("data", "train", "merge", "evaluate", "bench", "gate", "report", "publish")
DOORS = {
    "data": "tunesmith.data.stage",
    "evaluate": "tunesmith.evaluate.stage",
    "bench": "tunesmith.bench.stage",
    "gate": "tunesmith.gate.stage",
    "report": "tunesmith.report.stage",
    "publish": "tunesmith.publish.stage",
}
# Runs the command, but a stage's door kills the process the moment the stage has done its work: the worst moment,
# everything written and nothing recorded.
KILLER = """
import os, signal, sys, importlib
door = importlib.import_module({module!r})
real = door.run
def run(*arguments):
    real(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
door.run = run
from tunesmith.cli.app import main
sys.exit(main({arguments!r}))
"""

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    settings = [
        f"output_dir={tmp_path}/outputs",
        f"publish.local={tmp_path}/models",
        "data.train=[{path: quickstart/data/train.jsonl, max_rows: 160}]",
        "train.max_steps=14",
        "train.save_steps=4",
        "evaluate.function_calls.limit=6",
        "bench.num_requests=8",
        "gate=['train.final_loss > 0']",
    ]
    return ["run", "recipes/quickstart.yaml", *(word for setting in settings for word in ("--set", setting))]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}


def state(tmp_path: Path) -> dict[str, Any]:
    runs = [path for path in (tmp_path / "outputs" / "runs").iterdir() if not path.is_symlink()]
    assert len(runs) == 1, "a continued run makes no second directory"
    found: dict[str, Any] = json.loads((runs[0] / "run.json").read_text())
    return found


def kill_when_training_is_under_way(command: list[str], tmp_path: Path) -> int:
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    checkpoints = "outputs/runs/*/train/checkpoints/step-*"
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(checkpoints)):
        assert process.poll() is None and time.monotonic() < deadline, "training never wrote a checkpoint"
        time.sleep(0.02)
    process.kill()
    return process.wait()


def kill_when_the_stage_runs(stage: str, command: list[str], tmp_path: Path) -> int:
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while state(tmp_path)["stages"].get(stage, {}).get("state") != "running":
        assert process.poll() is None and time.monotonic() < deadline, f"{stage} never began"
        time.sleep(0.01)
    process.kill()
    return process.wait()


def leftovers(tmp_path: Path) -> list[str]:
    """Return the processes that still work in the run's directory."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(tmp_path) in line and int(folder.name) != os.getpid():
            found.append(line)
    return found


def test_killed_at_every_stage(tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "tunesmith", *arguments]
    before: dict[str, Any] = {}
    for index, stage in enumerate(STAGES):
        if stage == "train":
            code = kill_when_training_is_under_way(command, tmp_path)
        elif stage == "merge":
            code = kill_when_the_stage_runs("merge", command, tmp_path)
        else:
            program = KILLER.format(module=DOORS[stage], arguments=arguments)
            code = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment(), check=False).returncode
        assert code == -signal.SIGKILL, stage
        time.sleep(0.3)
        assert leftovers(tmp_path) == [], stage
        stages = state(tmp_path)["stages"]
        assert stages[stage]["state"] == "running"
        for done in STAGES[:index]:
            assert stages[done]["state"] == "done", done
            if done in before:
                assert stages[done] == before[done], f"{done} ran again after a kill in {stage}"
        before = {name: dict(stages[name]) for name in STAGES[:index]}
    finished = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    stages = state(tmp_path)["stages"]
    assert all(stages[name]["state"] == "done" for name in STAGES)
    assert {name: stages[name] for name in before} == before
    assert stages["serve"]["state"] == "done" and stages["serve"]["seconds"] > 0
    checkpoint = json.loads(next(tmp_path.glob("outputs/runs/2*/train/artifact.json")).read_text())
    assert checkpoint["num_steps"] == 14 and checkpoint["resumed_from_steps"], "training went on from its checkpoint"
    lines = next(tmp_path.glob("outputs/runs/2*/metrics.jsonl")).read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if "train/loss" in line]
    assert steps == list(range(1, 15)), "the loss curve has no gap and no double"

    again = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 0 and again.stderr.count("unchanged") == len(STAGES), again.stderr

    changed = [*command, "--set", "bench.num_requests=9"]
    subprocess.run(changed, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    after = state(tmp_path)["stages"]
    rerun = {
        name
        for name in STAGES
        if after[name]["started"] != stages[name]["started"] or after[name]["key"] != stages[name]["key"]
    }
    assert rerun == {"bench", "gate", "report", "publish"}


def test_a_stop_signal_leaves_a_run_that_goes_on(tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "tunesmith", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("outputs/runs/*/metrics.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 75, told
    assert "goes on" in told and "Traceback" not in told
    assert state(tmp_path)["state"] == "interrupted"
    assert leftovers(tmp_path) == []
    assert list(tmp_path.glob("outputs/runs/2*/train/checkpoints/step-*")), "the signal led to a checkpoint"
    done = subprocess.run([*command, "--until", "train"], cwd=ROOT, env=environment(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
