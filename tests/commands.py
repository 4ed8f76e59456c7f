"""Trainings of a tiny model by the real command, `tunesmith run RECIPE --until train`."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests import tiny
from tunesmith.artifacts import Checkpoint
from tunesmith.recipe.dump import dump_yaml
from tunesmith.store.run_dir import RunDir, list_runs

ROOT = Path(__file__).parents[1]
_WORDS = ("the", "weather", "of", "Berlin", "now", "is", "seven", "times", "eight", "fifty", "six", "tools", "here")


def write_rows(path: Path, num_rows: int, objective: str) -> None:
    """Write conversations, or preferences, of random words."""
    choose = random.Random(5)

    def words() -> str:
        return " ".join(choose.choices(_WORDS, k=choose.randint(3, 9)))

    with path.open("w") as file:
        for _ in range(num_rows):
            asked = [{"role": "user", "content": words()}]
            first, second = ([{"role": "assistant", "content": words()}] for _ in range(2))
            row = {"prompt": asked, "chosen": first, "rejected": second}
            file.write(json.dumps(row if objective == "dpo" else {"messages": asked + first}) + "\n")


class Training:
    """One recipe and its only run.

    Args:
        place: holds the model `base`; everything goes into a directory of its own there.
        settings: keys of `train`.
    """

    def __init__(self, place: Path, name: str, **settings: Any) -> None:
        self.directory = place / name
        self.directory.mkdir()
        self.recipe = self.directory / "recipe.yaml"
        train = {
            "objective": "sft", "method": "lora", "num_train_epochs": 6, "global_batch_size": 4, "learning_rate": 1e-3,
            "per_device_train_batch_size": 1, "save_steps": 5, "eval_steps": 16, "num_processes": 1,
            "parallelism": "ddp", "torch_compile": False,
        } | settings  # fmt: skip
        write_rows(self.directory / "rows.jsonl", 40, train["objective"])
        document = {
            "name": "tiny",
            "model": {"name_or_path": str(place / "base"), "dtype": "float32"},
            "data": {
                "train": [{"path": str(self.directory / "rows.jsonl")}],
                "validation_fraction": 0.15, "max_length": 128, "num_workers": 1,
            },
            "train": train,
            "output_dir": str(self.directory / "outputs"),
        }  # fmt: skip
        self.recipe.write_text(dump_yaml(document))

    def command(self, **settings: Any) -> list[str]:
        changes = [word for key, value in settings.items() for word in ("--set", f"train.{key}={value}")]
        return [sys.executable, "-m", "tunesmith", "run", str(self.recipe), "--until", "train", *changes]

    def start(self, **settings: Any) -> subprocess.Popen[str]:
        """Start the command with these keys of `train` changed."""
        log = (self.directory / "log.txt").open("a")
        return subprocess.Popen(
            self.command(**settings), cwd=ROOT, env=environment(), stderr=log, stdout=log, text=True
        )

    def finish(self, **settings: Any) -> None:
        code = self.start(**settings).wait(timeout=300)
        assert code == 0, self.told()

    def told(self) -> str:
        return (self.directory / "log.txt").read_text()

    @property
    def run_dir(self) -> RunDir:
        (run_dir,) = list_runs(self.directory / "outputs")
        return run_dir

    @property
    def record(self) -> Checkpoint:
        return self.run_dir.load(Checkpoint)

    def steps_done(self) -> int:
        with contextlib.suppress(ValueError, OSError):  # no run yet, or no metrics
            return max((step for step, _ in tiny.losses(self.run_dir)), default=0)
        return 0

    def wait_for_step(self, step: int, process: subprocess.Popen[str]) -> None:
        limit = time.monotonic() + 120
        while self.steps_done() < step:
            assert process.poll() is None and time.monotonic() < limit, f"step {step} never came\n{self.told()}"
            time.sleep(0.005)

    def saved_steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in self.run_dir.checkpoints.glob("step-*"))


def environment() -> dict[str, str]:
    more = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    return os.environ | more | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}


def descendants(pid: int) -> list[int]:
    """Return the processes below one, parents first."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found + [below for child in found for below in descendants(child)]


def ranks(pid: int) -> list[int]:
    """Return the ranks of a training that a command started."""
    return [child for child in descendants(pid) if b"RANK=" in _read(child, "environ") and _is_stage(child)]


def _is_stage(pid: int) -> bool:
    words = _read(pid, "cmdline").split(b"\0")
    return b"stage" in words and b"tunesmith.train.ranks" not in words


def _read(pid: int, name: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


def leftovers(directory: Path) -> list[str]:
    """Return the processes that still work in a directory."""
    lines = [_read(int(folder.name), "cmdline") for folder in Path("/proc").glob("[0-9]*")]
    return [line.replace(b"\0", b" ").decode() for line in lines if str(directory).encode() in line]
