"""A stage in a process of its own, and what signals do to it.

Training and merging get their own process: its memory is given back when it ends, `torchrun` can start several of it,
and the pipeline itself never loads an ML library. The child's last error comes back through a file in its stage
directory. It dies with the pipeline, so that a killed pipeline leaves nothing behind.

The process of a training is started early (`process.Early`): it imports while the recipe is read and rows are
tokenised, and is told on its standard input which run it is for.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TypeVar

from tunesmith import errors
from tunesmith.artifacts import Artifact
from tunesmith.errors import Interrupted, RankLost, RecipeError, StageError, TrainError, TunesmithError
from tunesmith.hardware import num_cpus
from tunesmith.process import Early, start_stage
from tunesmith.recipe.load import load
from tunesmith.recipe.schema import Recipe
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir

Record = TypeVar("Record", bound=Artifact)

STAGES = ("train", "merge")
_GRACE_SECONDS = 600  # for a step and its checkpoint, after a stop signal
_TELLING_SECONDS = 2.0  # from the end of a rank to the error it leaves


def raise_on_signals() -> None:
    """Turn SIGTERM, SIGUSR1 and SIGHUP into `Interrupted` in the main thread; SIGINT already is KeyboardInterrupt.

    SIGHUP comes when a terminal is closed; `nohup` has it ignored, which stays so.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        raise Interrupted(f"stopped by {name}", do="the same command goes on where this run stopped")

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def import_stage(stage: str) -> None:
    """Import what a stage will use, while nobody waits for it. What is missing is told when the stage runs."""
    if stage == "train":
        with contextlib.suppress(TunesmithError):
            from tunesmith.model.imports import import_libraries

            import_libraries()
            from tunesmith.train import building, loop  # noqa: F401


def run_here(stage: str, recipe: Recipe, run_dir: RunDir) -> Artifact:
    """Run one of `STAGES` in this process."""
    if stage == "train":
        from tunesmith.train import stage as training

        return training.run(recipe, run_dir)
    from tunesmith.merge import stage as merging

    return merging.run(recipe, run_dir)


def load_resolved(run_dir: RunDir) -> Recipe:
    """Read the resolved recipe of an existing run. A variable it refers to is missed only where its value is used."""
    return load(Path(run_dir.resolved_recipe), needs_variables=False).recipe


def told_run() -> str | None:
    """Return the run directory that comes on standard input; None when the pipeline has ended without one."""
    line = sys.stdin.buffer.readline()
    return os.fsdecode(line[:-1]) if line.endswith(b"\n") else None


def _start(stage: str, run_dir: RunDir, num_processes: int) -> subprocess.Popen[bytes]:
    """Start the stage's process, or the launcher of its ranks."""
    if num_processes == 1:
        return start_stage(stage, str(run_dir.path))
    environment = {
        # Without it, ranks that start again look for each other at the addresses of those that died (torch 2.13).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_GRACE_SECONDS),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, num_cpus() // num_processes))),
    }
    launcher = ("-m", "tunesmith.train.ranks", str(num_processes))
    return start_stage(stage, str(run_dir.path), launcher=launcher, environment=environment)


def run(
    stage: str, run_dir: RunDir, kind: type[Record], *, num_processes: int = 1, early: Early | None = None
) -> Record:
    """Run `tunesmith stage NAME RUN_DIR` and return the record it left.

    Args:
        num_processes: how many ranks share the work. When one of them dies, all start again from the newest checkpoint.
        early: a process that may be waiting for this; a single one only.

    Raises:
        TunesmithError: what the stage raised, of the same class.
        StageError: the process died without a word.
    """
    error_file = run_dir.stage(stage) / "error.json"
    error_file.unlink(missing_ok=True)
    child = early.take(stage, run_dir.path) if early is not None and num_processes == 1 else None
    child = child or _start(stage, run_dir, num_processes)
    try:
        code = child.wait()
    except (KeyboardInterrupt, Interrupted):
        child.send_signal(signal.SIGTERM)
        with contextlib.suppress(KeyboardInterrupt, Interrupted, subprocess.TimeoutExpired):
            child.wait(timeout=_GRACE_SECONDS)
        raise
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    if code != 0 or error_file.exists():
        raise _error_of(stage, run_dir, code)
    return run_dir.load(kind)


def is_first_rank() -> bool:
    """Return whether this process is the one of its ranks that writes records."""
    return os.environ.get("RANK", "0") == "0"


def is_orphan() -> bool:
    """Return whether this is a rank whose launcher was gone before this rank could tie itself to it."""
    launcher = os.environ.get("TUNESMITH_LAUNCHER")
    return launcher is not None and int(launcher) != os.getppid()


def leave_error(stage: str, run_dir: RunDir, error: TunesmithError) -> int:
    """Leave an error where the parent process finds it; return the exit code to end with.

    Under torchrun that is 0 for errors which would only happen again: any other code makes it start all ranks anew.
    """
    document = {"class": type(error).__name__, "what": error.what, "where": error.where, "do": error.do}
    file = run_dir.stage(stage) / "error.json"
    code = 0 if "TORCHELASTIC_RUN_ID" in os.environ else error.exit_code
    if isinstance(error, RankLost) and _another_rank_says_why(file):
        return code
    files.write_json(file, document)
    return error.exit_code if isinstance(error, TrainError) and error.starts_again else code


def _another_rank_says_why(file: Path) -> bool:
    """Return whether the lost rank ended with an error that it has told; it may be about to."""
    limit = time.monotonic() + _TELLING_SECONDS
    while not file.exists() and time.monotonic() < limit:
        time.sleep(0.05)
    return file.exists()


def forget_error(stage: str, run_dir: RunDir) -> None:
    """Remove what an earlier start of the ranks left."""
    if is_first_rank():
        (run_dir.stage(stage) / "error.json").unlink(missing_ok=True)


def _error_of(stage: str, run_dir: RunDir, code: int) -> TunesmithError:
    with contextlib.suppress(OSError, ValueError):
        told = json.loads((run_dir.stage(stage) / "error.json").read_text())
        kind = getattr(errors, str(told["class"]), StageError)
        problem = StageError if kind is RecipeError else kind  # that one holds other errors
        error: TunesmithError = problem(told["what"], where=told["where"], do=told["do"])
        return error
    if code < 0:
        name = signal.Signals(-code).name
        do = "SIGKILL usually means that memory ran out: lower train.per_device_train_batch_size or data.max_length"
        return StageError(f"the process of stage {stage} was ended by {name}", where=str(run_dir.path), do=do)
    return StageError(f"the process of stage {stage} ended with exit code {code}", where=str(run_dir.path))
