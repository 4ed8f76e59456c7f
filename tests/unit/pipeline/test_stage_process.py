"""Errors that ranks leave, and whether they start again; processes that are started before their turn."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tunesmith import stage_process
from tunesmith.artifacts import Weights
from tunesmith.errors import Interrupted, RankLost, RecipeError, StageError, TrainError
from tunesmith.process import TOLD_LATER, Early, start_stage
from tunesmith.store.run_dir import RunDir

WAIT_SECONDS = 0.2


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """As a rank finds it that a launcher has started."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setattr(stage_process, "_TELLING_SECONDS", WAIT_SECONDS)
    run_dir = RunDir(tmp_path)
    run_dir.stage("train").mkdir()
    return run_dir


def left(run_dir: RunDir) -> str:
    return str(json.loads((run_dir.stage("train") / "error.json").read_text())["what"])


def test_a_lost_rank_starts_all_again(run_dir: RunDir) -> None:
    assert stage_process.leave_error("train", run_dir, RankLost("another rank ended")) == RankLost.exit_code
    assert left(run_dir) == "another rank ended"


def test_a_rank_that_says_why_it_ended_does_not(run_dir: RunDir) -> None:
    """It may say so a moment after the others have noticed: what is wrong would only be wrong again."""

    def tell() -> None:
        time.sleep(WAIT_SECONDS / 2)
        assert stage_process.leave_error("train", run_dir, TrainError("one row is too large")) == 0

    teller = threading.Thread(target=tell)
    teller.start()
    assert stage_process.leave_error("train", run_dir, RankLost("another rank ended")) == 0
    teller.join()
    assert left(run_dir) == "one row is too large"


def test_an_error_that_a_new_start_gets_over(run_dir: RunDir) -> None:
    error = TrainError("memory ran out on one rank")
    error.starts_again = True
    assert stage_process.leave_error("train", run_dir, error) == TrainError.exit_code
    assert stage_process.leave_error("train", run_dir, Interrupted("stopped")) == 0


def test_without_a_launcher_the_exit_code_tells(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert stage_process.leave_error("train", run_dir, Interrupted("stopped")) == 75


def test_a_rank_whose_launcher_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not stage_process.is_orphan()
    monkeypatch.setenv("TUNESMITH_LAUNCHER", str(os.getppid()))
    assert not stage_process.is_orphan()
    monkeypatch.setenv("TUNESMITH_LAUNCHER", str(os.getpid()))
    assert stage_process.is_orphan()


# Merging stands for any stage here: its process imports little before it is told its run.


def started(early: Early) -> int:
    early.start("merge")
    assert early._child is not None
    return early._child.pid


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_started_early_is_told_its_run(tmp_path: Path) -> None:
    """The run's path may hold anything; what the process says about it comes back."""
    run_dir = RunDir(tmp_path / "ü run")
    run_dir.stage("merge").mkdir(parents=True)
    run_dir.write_run({"stages": {}})
    with Early() as early:
        pid = started(early)
        early.start("merge")
        assert early._child is not None and early._child.pid == pid, "once is enough"
        with pytest.raises((StageError, RecipeError), match="resolved"):
            stage_process.run("merge", run_dir, Weights, early=early)
        assert early._child is None and not is_there(pid)


def test_a_process_started_early_and_not_used_is_ended(tmp_path: Path) -> None:
    with Early() as early:
        pid = started(early)
        assert early.take("train", tmp_path) is None, "it is another stage's"
        assert is_there(pid)
    assert not is_there(pid)


def test_a_process_started_early_that_died_is_replaced(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.stage("merge").mkdir()
    with Early() as early:
        started(early)
        assert early._child is not None
        early._child.kill()
        early._child.wait()
        assert early.take("merge", run_dir.path) is None
        with pytest.raises((StageError, RecipeError)):
            stage_process.run("merge", run_dir, Weights, early=early)


def test_a_process_started_early_ends_with_its_pipeline() -> None:
    command = [sys.executable, "-m", "tunesmith", "stage", "merge", TOLD_LATER, "--child"]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, timeout=60).returncode == 0


# ── The command starts its training before it reads the recipe ───────────────────────────────────────────────────────


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A `tunesmith run` that waits for its recipe, a named pipe, and the process that it has started before."""
    recipe = tmp_path / "recipe.yaml"
    os.mkfifo(recipe)
    command = [sys.executable, "-m", "tunesmith", "run", str(recipe)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        yield process, until(lambda: next(iter(children_of(process.pid)), 0))
        if process.poll() is None:
            process.kill()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(found: Callable[[], int]) -> int:
    limit = time.monotonic() + 30
    while not (value := found()):
        assert time.monotonic() < limit
        time.sleep(0.02)
    return value


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, and prctl")


@on_linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_stopped_while_it_starts_leaves_nothing_behind(
    waiting: tuple[subprocess.Popen[bytes], int], number: signal.Signals
) -> None:
    process, child = waiting
    process.send_signal(number)
    code = process.wait(timeout=30)
    assert code == (Interrupted.exit_code if number == signal.SIGINT else -number)
    until(lambda: not is_there(child))


@on_linux
def test_a_recipe_that_is_no_recipe_ends_the_training_started_for_it(
    waiting: tuple[subprocess.Popen[bytes], int], tmp_path: Path
) -> None:
    process, child = waiting
    (tmp_path / "recipe.yaml").write_text("name: x\nmodle: y\n")
    assert process.stderr is not None
    told = process.stderr.read().decode()
    assert process.wait(timeout=30) == RecipeError.exit_code and "did you mean `model`" in told
    assert not is_there(child)


@on_linux
@pytest.mark.parametrize("own", [None, "glibc.malloc.mxfast=64"])
def test_how_a_stage_keeps_its_heap(own: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody has set up stays."""
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if own is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", own)
    child = start_stage("merge", TOLD_LATER, stdin=subprocess.PIPE)
    try:
        environment = (
            Path(f"/proc/{child.pid}/environ").read_bytes().replace(b"\0", b":").decode()
        )  # as glibc does there itself
    finally:
        child.kill()
        child.communicate()
    expected = own or "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
    assert f":GLIBC_TUNABLES={expected}:" in f":{environment}"
