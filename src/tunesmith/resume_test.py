"""Prove on a user's own recipe that a training which was killed and went on ends where an undisturbed one ends.

The recipe is trained twice for a few steps, each by the real command in a directory of its own: once to the end, once
with `kill -9` at random moments. Then every number of the loss curve and every byte of the trained weights is compared.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import Interrupted, TrainError
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir, cache_root, list_runs

_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Proof:
    """What was compared."""

    num_steps: int
    killed_at_steps: tuple[int, ...]
    resumed_from_steps: tuple[int, ...]
    first_difference: str | None  # None: all is equal, bit for bit
    files_compared: tuple[str, ...]
    seconds: tuple[float, float]  # undisturbed, killed

    @property
    def exact(self) -> bool:
        return self.first_difference is None


def prove(
    recipe: Path, settings: list[str], directory: Path, *, num_steps: int, num_kills: int, say: Callable[[str], None]
) -> Proof:
    """Train twice and compare.

    Args:
        settings: `KEY=VALUE` words for both trainings.
        directory: where both go; must not exist.
        say: is told what happens.

    Raises:
        TrainError: a training ended with an error of its own.
        Interrupted: it was stopped.
    """
    every = max(1, num_steps // 4)
    lengths = {"train.max_steps": num_steps, "train.save_steps": every, "train.logging_steps": 1, "track": "[]"}
    settings = [*settings, *(f"{key}={value}" for key, value in lengths.items())]
    began = time.monotonic()
    say(f"undisturbed: {num_steps} steps, a checkpoint every {every}")
    whole = _Training(recipe, settings, directory / "whole")
    whole.finish()
    middle = time.monotonic()
    killed = _Training(recipe, settings, directory / "killed")
    killed.share_tokens_of(whole)
    moments = sorted(random.SystemRandom().sample(range(1, num_steps), min(num_kills, num_steps - 1)))
    for step in moments:
        killed.kill_after(step)
        say(f"killed with SIGKILL after step {killed.steps_done()}")
    killed.finish()
    ended = time.monotonic()
    difference, compared = _difference(whole, killed)
    record = json.loads((killed.run_dir.stage("train") / "artifact.json").read_text())
    return Proof(
        num_steps=num_steps,
        killed_at_steps=tuple(killed.killed_at),
        resumed_from_steps=tuple(record["resumed_from_steps"]),
        first_difference=difference,
        files_compared=compared,
        seconds=(round(middle - began, 1), round(ended - middle, 1)),
    )


class _Training:
    """One training by the real command."""

    def __init__(self, recipe: Path, settings: list[str], output_dir: Path) -> None:
        words = [word for setting in [*settings, f"output_dir={output_dir}"] for word in ("--set", setting)]
        self._command = [sys.executable, "-m", "tunesmith", "run", str(recipe), "--until", "train", *words]
        self._output_dir = output_dir
        self.killed_at: list[int] = []

    def share_tokens_of(self, other: _Training) -> None:
        """Use what another training has tokenised."""
        self._output_dir.mkdir(parents=True)
        cache_root(self._output_dir).symlink_to(cache_root(other._output_dir).resolve())

    @property
    def run_dir(self) -> RunDir:
        return list_runs(self._output_dir)[-1]

    def finish(self) -> None:
        """Run to the end."""
        done = subprocess.run(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode == Interrupted.exit_code:
            raise Interrupted("stopped", do="start it again")
        if done.returncode != 0:
            told = done.stderr.strip().splitlines()
            raise TrainError(f"the training ended with exit code {done.returncode}: {' '.join(told[-2:])}")

    def kill_after(self, step: int) -> None:
        """Run until so many steps are done, and kill it at once."""
        child = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            while child.poll() is None and self.steps_done() < step:
                time.sleep(_LOOK_SECONDS)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        self.killed_at.append(self.steps_done())

    def steps_done(self) -> int:
        """Return the newest step of metrics.jsonl."""
        runs = list_runs(self._output_dir)
        steps = [line["step"] for line in _metrics(runs[-1])] if runs else []
        return int(max(steps, default=0))


def _metrics(run_dir: RunDir) -> list[dict[str, Any]]:
    lines = run_dir.metrics.read_text().split("\n") if run_dir.metrics.exists() else []
    return [json.loads(line) for line in lines[:-1]]  # behind the last newline lies what is being written


def _curve(run_dir: RunDir) -> list[tuple[int, float]]:
    return [(line["step"], line["train/loss"]) for line in _metrics(run_dir) if "train/loss" in line]


def _difference(whole: _Training, killed: _Training) -> tuple[str | None, tuple[str, ...]]:
    """Return the first difference, and the files that were compared."""
    curves = [_curve(whole.run_dir), _curve(killed.run_dir)]
    trained = whole.run_dir.trained, killed.run_dir.trained
    names = tuple(sorted(path.name for path in trained[0].glob("*.safetensors")))
    if len(curves[0]) != len(curves[1]):
        return f"the curves have {len(curves[0])} and {len(curves[1])} points", names
    for (step, loss), (_, other) in zip(*curves, strict=True):
        if loss != other:
            return f"the loss of step {step} is {loss!r} undisturbed and {other!r} after the kill", names
    for name in names:
        if files.sha256(trained[0] / name) != files.sha256(trained[1] / name):
            return f"{name} differs", names
    return None, names
