"""Stop signals while a model trains: at once outside of steps, after the step and a checkpoint inside them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from tunesmith.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals:
    """Takes over SIGTERM, SIGUSR1 and SIGINT while the block runs.

    Attributes:
        requested: name of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._patient = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._take) for number in _SIGNALS}
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

    def interrupted(self, step: int | None = None) -> Interrupted:
        """Return the error that ends a stopped training."""
        after = f" after step {step}, which is saved" if step is not None else ""
        return Interrupted(f"stopped by {self.requested}{after}", do="the same command goes on where this run stopped")
