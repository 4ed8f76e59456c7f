"""Starts of `tunesmith stage train` from a process that has the libraries loaded already, for tests that start many.

A fork server imports this module once; every rank is a fork of it, and runs what the real command would run there.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import transformers.models.llama.modeling_llama  # noqa: F401

from tunesmith.train import building, stage  # noqa: F401


def run_rank(run: str, log: str, environment: dict[str, str]) -> None:
    """Be one rank of a training, to its end."""
    os.environ.update(environment)
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from tunesmith.cli.app import main

    sys.exit(main(["stage", "train", run, "--child"]))


def warm_up() -> None:
    """Return when the libraries are loaded."""
    process = _context().Process(target=os.getpid)
    process.start()
    process.join()


def _context() -> Any:
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.warm"])
    return context


class Ranks:
    """The ranks of one start of a training, which meet without a launcher."""

    def __init__(self, run: Path, size: int) -> None:
        context = _context()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self._ranks: list[BaseProcess] = []
        for rank in range(size):
            more = world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {}
            process = context.Process(target=run_rank, args=(str(run), f"{run}.log", more), daemon=True)
            process.start()
            self._ranks.append(process)

    def running(self) -> bool:
        return any(process.is_alive() for process in self._ranks)

    def kill(self) -> None:
        """SIGKILL to all of them."""
        for process in self._ranks:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        for process in self._ranks:
            process.join()

    def finish(self, seconds: float = 120) -> None:
        """Wait for the end, which is to be a good one."""
        limit = time.monotonic() + seconds
        for process in self._ranks:
            process.join(max(0.0, limit - time.monotonic()))
        codes = [process.exitcode for process in self._ranks]
        self.kill()
        assert codes == [0] * len(codes), codes
