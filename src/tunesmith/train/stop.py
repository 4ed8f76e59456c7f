"""Stop signals while a model trains: at once outside of steps, after the step and a checkpoint inside them.

One process stops after the step in which a signal came. Several ranks stop after the step in which the signal of any of
them was told to all.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from tunesmith.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class StopSignals:
    """Takes over SIGTERM, SIGUSR1, SIGINT and SIGHUP while the block runs; a SIGHUP that is ignored (nohup) stays so.

    Attributes:
        requested: name of the signal that came, or None.
        alone: whether there is no other rank to agree with.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self.alone = True
        self._told = False
        self._patient = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            ignored = [n for n in (signal.SIGHUP,) if signal.getsignal(n) == signal.SIG_IGN]
            self._previous = {n: signal.signal(n, self._take) for n in _SIGNALS if n not in ignored}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        again = self.requested is not None
        self.requested = signal.Signals(number).name
        if not self._patient or (again and number == signal.SIGINT):
            raise self.interrupted()

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Only note signals in this block, which looks at `requested` itself. A second Ctrl-C stops at once."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def agree(self, stop: bool) -> None:
        """Take note that all ranks know of a signal."""
        self._told = self._told or stop

    @property
    def agreed(self) -> bool:
        """Whether to stop now, on every rank alike."""
        return self._told or (self.alone and self.requested is not None)

    def interrupted(self, step: int | None = None, *, saved: bool = True) -> Interrupted:
        """Return the error that ends a stopped training."""
        kept = "which is saved" if saved else "which could not be saved"
        after = f" after step {step}, {kept}" if step is not None else ""
        by = self.requested or "a signal to another rank"
        return Interrupted(f"stopped by {by}{after}", do="the same command goes on where this run stopped")
