"""Start several ranks of a training on this machine, and start them all again when one of them dies.

    python -m tunesmith.train.ranks 4 -m tunesmith stage train RUN --child

What torchrun does, by the agent of PyTorch that torchrun is made of, without its tracebacks: the ranks tell themselves
what went wrong. The first stop signal goes to every rank. Those behind it do nothing, for the agent would end the ranks
at once; schedulers signal a whole tree of processes, so that one stop comes here several times.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType

MAX_RESTARTS = 3
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def main(arguments: list[str]) -> int:
    """Run `python WORDS…` in as many processes as the first argument says; return the exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from tunesmith.track.console import warn

    def stop(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        name = signal.Signals(number).name
        raise SignalException(f"stopped by {name}", sigval=signal.Signals(number))

    num_processes, *words = arguments
    logging.disable(logging.ERROR)
    for each in _SIGNALS:
        if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN:  # nohup stays in force
            signal.signal(each, stop)
    os.environ["TUNESMITH_LAUNCHER"] = str(os.getpid())  # read by `stage_process.is_orphan`
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(num_processes),
        max_restarts=MAX_RESTARTS,
        monitor_interval=0.5,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        signals_to_handle="SIGQUIT",  # the others are handled here
    )
    try:
        elastic_launch(config, sys.executable)("-u", *words)
    except SignalException:
        return 0  # the ranks have written what they had, and said so
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        warn(f"rank {rank} ended with exit code {failure.exitcode}, after {MAX_RESTARTS} new starts of all ranks")
        return int(failure.exitcode)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
