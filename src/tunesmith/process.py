"""Child processes that never outlive their parent, and the process of a stage that is started before its turn.

Importing PyTorch and transformers takes three seconds of one core, nearly all that passes between a command and the
first step. So this module imports next to nothing: `tunesmith run` starts its training before it reads the recipe.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

TOLD_LATER = "-"  # in the place of a run directory: it comes on standard input
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, however that happens. Linux only; else nothing.

    Meant as `preexec_fn`: runs in the child between fork and exec.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


# glibc serves an aligned request from a larger chunk and frees what is left over. Small objects that are set aside (per
# thread, or in fast bins) do not merge with a tensor's memory when that is freed, and a third of a training's heap was
# holes. Without either, peaks are a tenth to a fifth lower (docs/log.md, "memory of full training").
# Ranks that a launcher starts have the first of the two only: glibc cuts the variable up where it has read it.
_WHOLE_HEAP = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"


def start_stage(
    stage: str,
    run: str,
    *,
    launcher: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    stdin: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start `tunesmith stage STAGE RUN` as a child that leaves its error in a file.

    Args:
        launcher: what Python runs in its place, and which then starts it.
        environment: variables besides our own.
    """
    command = [sys.executable, *launcher, "-m", "tunesmith", "stage", stage, run, "--child"]
    ours = {"OMP_WAIT_POLICY": "PASSIVE", "GLIBC_TUNABLES": _WHOLE_HEAP}
    variables = ours | os.environ | dict(environment or {})
    return subprocess.Popen(command, env=variables, stdin=stdin, start_new_session=True, preexec_fn=die_with_parent)


class Early:
    """The process of a stage, started before its turn. A context manager: what was not used is ended.

    Started by the thread that goes on to run the stage: the kernel ends a child with the thread that made it.
    """

    def __init__(self) -> None:
        self._stage = ""
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, stage: str) -> None:
        """Start the stage's process, unless it has been."""
        if self._child is None:
            self._stage, self._child = stage, start_stage(stage, TOLD_LATER, stdin=subprocess.PIPE)

    def take(self, stage: str, run_dir: Path) -> subprocess.Popen[bytes] | None:
        """Tell the process which run it is for, and hand it over; None when there is none of this stage at work."""
        child = self._child
        if child is None or stage != self._stage:
            return None
        self._child = None
        assert child.stdin is not None
        try:
            with child.stdin as told:
                told.write(os.fsencode(run_dir) + b"\n")
        except OSError:  # it has ended
            child.wait()
            return None
        return child

    def end(self) -> None:
        """End a process that nobody has taken: it holds nothing that anybody waits for."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
