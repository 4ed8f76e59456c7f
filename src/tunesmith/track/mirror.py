"""What a mirror of metrics.jsonl is, and how it is fed: from its own thread, so that it never holds up a step."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable
from typing import Literal, Protocol

from tunesmith.recipe.environment import redact
from tunesmith.track import console
from tunesmith.track.jsonl import Line

Outcome = Literal["done", "failed", "interrupted"]

_ATTEMPTS = 3
_PAUSE_SECONDS = 1.0
_MAX_LINES_AT_ONCE = 200
_CLOSE_SECONDS = 60.0


class Mirror(Protocol):
    """One tracker that gets the same numbers at the same steps as metrics.jsonl.

    A mirror is given every line of the file when it starts, those of earlier processes included, and knows itself which
    of them it has: no crash makes a gap or a double.
    """

    name: str

    def write(self, lines: list[Line]) -> None:
        """Take lines in order, leaving out what it has. May raise anything; is called again with the same lines."""
        ...

    def close(self, outcome: Outcome) -> None:
        """Finish, whatever was written. May raise anything."""
        ...


class Follower:
    """Feeds one mirror. The first lasting failure is told once; after it the mirror gets nothing more.

    Args:
        mirror: has started.
        lines: what the file holds already.
    """

    def __init__(self, mirror: Mirror, lines: Iterable[Line]) -> None:
        self._mirror = mirror
        self._queue: queue.SimpleQueue[Line | Outcome] = queue.SimpleQueue()
        for line in lines:
            self._queue.put(line)
        self._thread = threading.Thread(target=self._follow, name=f"mirror-{mirror.name}", daemon=True)
        self._thread.start()

    def add(self, line: Line) -> None:
        """Pass a line on; returns at once."""
        self._queue.put(line)

    def close(self, outcome: Outcome) -> None:
        """Wait until the mirror has every line, at most a minute, and finish it."""
        self._queue.put(outcome)
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            console.warn(
                f"{self._mirror.name} did not take all metrics in {_CLOSE_SECONDS:.0f} s; metrics.jsonl has them"
            )

    def _follow(self) -> None:
        outcome: Outcome | None = None
        working = True
        while outcome is None:
            lines, outcome = self._take()
            working = working and (not lines or self._try(lines))
        if working:
            try:
                self._mirror.close(outcome)
            except Exception as error:  # noqa: BLE001 - a tracker's trouble must not become the run's
                self._warn(error)

    def _take(self) -> tuple[list[Line], Outcome | None]:
        """Wait for a line; return it with all that wait behind it, and the outcome when it is among them."""
        lines: list[Line] = []
        while len(lines) < _MAX_LINES_AT_ONCE:
            try:
                item = self._queue.get(block=not lines)
            except queue.Empty:
                break
            if isinstance(item, str):
                return lines, item
            lines.append(item)
        return lines, None

    def _try(self, lines: list[Line]) -> bool:
        for attempt in range(_ATTEMPTS):
            try:
                self._mirror.write(lines)
                return True
            except Exception as error:  # noqa: BLE001 - a tracker's trouble must not become the run's
                if attempt == _ATTEMPTS - 1:
                    self._warn(error)
                else:
                    time.sleep(_PAUSE_SECONDS * 2**attempt)
        return False

    def _warn(self, error: Exception) -> None:
        console.warn(
            f"{self._mirror.name} failed and gets no more metrics of this process ({brief(error)}); "
            "metrics.jsonl has them all, and the run goes on"
        )


def brief(error: BaseException) -> str:
    """Return the first line of an error, without credentials, short enough for a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = redact(lines[0] if lines else type(error).__name__)
    return text if len(text) <= 300 else f"{text[:300]}…"
