"""What a person sees while a run works: progress with rate and time left, and lines where there is no terminal.

Progress goes to stderr, results to stdout. `Console` is the only writer of either below the command line.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from types import TracebackType
from typing import Any, Self

_CALM_SECONDS = 1.0


def is_terminal() -> bool:
    """Return whether stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def say(text: str) -> None:
    """Print one line about what is happening. When nobody listens any more (a pipe, a terminal that is gone), go on."""
    from tunesmith.recipe.environment import redact

    with contextlib.suppress(OSError):
        print(redact(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print one warning."""
    colour = "\033[33m" if is_terminal() and "NO_COLOR" not in os.environ else ""
    say(f"{colour}warning: {text}{chr(27) + '[0m' if colour else ''}")


def duration(seconds: float) -> str:
    """Return a time as people say it: `4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _pace(rate: float, unit: str) -> str:
    """Return a rate as people say it: `12.0 rows/s`, or `3.2 s per step` when one takes longer than a second."""
    if 0 < rate < 1:
        return f"{duration(1 / rate)} per {unit.removesuffix('s')}"
    return f"{rate:,.1f} {unit}/s"


class Progress:
    """Progress of one piece of work: a bar on a terminal, a plain line every few seconds elsewhere.

    Args:
        title: what is being done, e.g. `tokenise`.
        total: how many units there are; None when unknown.
        unit: name of one unit, for the rate: `rows`, `steps`, `requests`.
        every_seconds: how often a plain line is printed where there is no terminal.
        shown: whether to print at all; of several ranks only one does.
        calm: redraw the bar once a second and in `advance` only, for work whose timing a drawing thread would disturb.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        unit: str,
        *,
        every_seconds: float = 5.0,
        shown: bool = True,
        calm: bool = False,
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self._shown = shown
        self._calm = calm
        self._drawn = 0.0
        self._note = ""
        self._started = time.monotonic()
        self._begun_at = 0
        self._printed = self._started
        self._every_seconds = every_seconds
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if self._shown and is_terminal():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("  {task.description:<10}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
                auto_refresh=not self._calm,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, rate="", note="")
        return self

    def start_at(self, done: int) -> None:
        """Say that this much was done before (a resumed run), so that the rate counts new work only."""
        self.done = self._begun_at = done
        self._show()

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count units as done; `note` is shown behind the bar (the loss, say)."""
        self.done += units
        self._note = note or self._note
        self._show()

    def _rate(self) -> float:
        return (self.done - self._begun_at) / max(1e-9, time.monotonic() - self._started)

    def _show(self) -> None:
        if self._calm and self._bar is not None:
            if time.monotonic() - self._drawn < _CALM_SECONDS and self.done != self.total:
                return
            self._drawn = time.monotonic()
        if self._bar is not None:
            rate = _pace(self._rate(), self.unit)
            self._bar.update(self._task, completed=self.done, rate=rate, note=self._note, refresh=self._calm)
        elif self._shown and time.monotonic() - self._printed >= self._every_seconds:
            self._printed = time.monotonic()
            say(self.line())

    def line(self) -> str:
        """Return the state as one plain line."""
        of = f"/{self.total}" if self.total is not None else ""
        rate = self._rate()
        left = ""
        if self.total is not None and rate > 0 and self.done < self.total:
            left = f", {duration((self.total - self.done) / rate)} left"
        note = f"  {self._note}" if self._note else ""
        return f"  {self.title}: {self.done}{of} {self.unit}, {_pace(rate, self.unit)}{left}{note}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
