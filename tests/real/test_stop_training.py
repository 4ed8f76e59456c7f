"""Trainings by the real command that are stopped, lose a rank, or go on with another number of ranks."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from tests import commands, tiny  # noqa: E402
from tests.commands import Training  # noqa: E402
from tunesmith.errors import Interrupted  # noqa: E402

pytestmark = [pytest.mark.real, pytest.mark.slow]
SHARDS = {"num_processes": 2, "parallelism": "fsdp2"}
DPO = {"objective": "dpo", "method": "full", "learning_rate": 1e-4}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    tiny.write_model(place / "base")
    return place


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Training:
    """LoRA on one rank."""
    training = Training(place, "undisturbed")
    training.finish()
    return training


def assert_same_curve(found: Training, expected: Training) -> None:
    """As near as another order of summation allows."""
    for name in ("train/loss", "eval/loss"):
        ours, theirs = tiny.losses(found.run_dir, name), tiny.losses(expected.run_dir, name)
        assert [step for step, _ in ours] == [step for step, _ in theirs] and ours, "no gap and no double"
        assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=1e-5)
    assert found.record.num_steps == expected.record.num_steps


def assert_identical(found: Training, expected: Training) -> None:
    for name in ("train/loss", "eval/loss"):
        assert tiny.losses(found.run_dir, name) == tiny.losses(expected.run_dir, name)
    for file in expected.run_dir.trained.glob("*.safetensors"):
        ours, theirs = load_file(found.run_dir.trained / file.name), load_file(file)
        assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def stop(training: Training, number: signal.Signals, *, at_step: int, whole_tree: bool = False, **settings: Any) -> int:
    """Start, stop after a step, and return the newest step that had been logged when the signal was sent."""
    process = training.start(**settings)
    training.wait_for_step(at_step, process)
    done = training.steps_done()
    for pid in [process.pid, *(commands.descendants(process.pid) if whole_tree else ())]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    assert process.wait(120) == Interrupted.exit_code, training.told()
    assert commands.leftovers(training.directory) == []
    return done


def test_one_rank_stops_within_a_step(place: Path, undisturbed: Training) -> None:
    training = Training(place, "one")
    done = stop(training, signal.SIGUSR1, at_step=7)
    last = training.steps_done()
    assert training.saved_steps()[-1] == last, "the last step that was made is saved"
    assert last <= done + 2, "the one under way when the signal was sent, and one that had begun when it arrived"
    training.finish()
    assert training.record.resumed_from_steps == (last,)
    assert_identical(training, undisturbed)


def test_two_ranks_stop_within_a_step(place: Path) -> None:
    """The signal comes to every process of the tree at once, as schedulers send it. First, the command is killed."""
    expected = Training(place, "two-undisturbed", num_processes=2)
    expected.finish()
    training = Training(place, "two-stopped", num_processes=2)
    process = training.start()
    training.wait_for_step(2, process)
    process.kill()
    process.wait()
    limit = time.monotonic() + 5
    while commands.leftovers(training.directory) and time.monotonic() < limit:
        time.sleep(0.01)
    assert commands.leftovers(training.directory) == [], "no rank outlives the command"

    done = stop(training, signal.SIGTERM, at_step=12, whole_tree=True)
    last = training.steps_done()
    assert training.saved_steps()[-1] == last <= done + 2, training.told()
    training.finish()
    assert training.record.resumed_from_steps[-1] == last
    assert_identical(training, expected)


def test_shards_of_two_ranks_are_resumed_by_one_and_by_four(place: Path) -> None:
    """Preferences and a model that moves as a whole: what ranks gather before a checkpoint is read is stale then."""
    expected = Training(place, "shards-undisturbed", **DPO)
    expected.finish()
    training = Training(place, "shards", **DPO)
    stop(training, signal.SIGTERM, at_step=8, **SHARDS)
    newest = training.run_dir.checkpoints / f"step-{training.saved_steps()[-1]:06d}"
    assert "weights-00002-of-00002.safetensors" in {path.name for path in newest.iterdir()}
    shutil.copytree(training.directory, place / "copy", symlinks=True)
    for num_ranks in (1, 4):
        training.finish(num_processes=num_ranks, parallelism="fsdp2")
        assert training.record.num_ranks == num_ranks and len(training.record.resumed_from_steps) == 1
        assert_same_curve(training, expected)
        if num_ranks == 1:
            shutil.rmtree(training.directory)
            (place / "copy").rename(training.directory)


def test_a_rank_that_dies_is_started_again(place: Path, undisturbed: Training) -> None:
    """Shards, so that the dead rank's part of a checkpoint may be missing for good."""
    training = Training(place, "dies")
    process = training.start(**SHARDS)
    training.wait_for_step(9, process)
    before = commands.ranks(process.pid)
    assert len(before) == 2, before
    os.kill(before[-1], signal.SIGKILL)
    assert process.wait(120) == 0, training.told()
    (resumed,) = training.record.resumed_from_steps
    assert resumed >= 5 and training.record.num_ranks == 2
    assert_same_curve(training, undisturbed)
