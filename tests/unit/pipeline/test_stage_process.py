"""Errors that ranks leave, and whether they start again."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from tunesmith import stage_process
from tunesmith.errors import Interrupted, RankLost, TrainError
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
