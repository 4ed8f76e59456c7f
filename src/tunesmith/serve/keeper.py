"""`python -m tunesmith.serve.keeper COMMAND…`: run a command whose own children must not outlive us either.

The kernel can kill a child when its parent dies, but not the grandchildren, and vLLM's are the ones that hold the GPU's
memory. The keeper stands between: it hears that its parent has died and then ends its whole process group, whose leader
it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

from tunesmith.process import die_with_parent

_GRACE_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(command: list[str]) -> int:
    """Run the command; return its exit code."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
    _hear_of_parents_death()
    child = subprocess.Popen(command, preexec_fn=die_with_parent)
    while child.poll() is None and not stopping.wait(0.1):
        pass
    if stopping.is_set() and child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_GRACE_SECONDS)
    if stopping.is_set():
        os.killpg(os.getpgrp(), signal.SIGKILL)  # what is left of the group, and we with it
    return child.wait()


def _hear_of_parents_death() -> None:
    """Have the kernel send SIGTERM when the parent dies, in place of the SIGKILL that `serve.process` asked for."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
