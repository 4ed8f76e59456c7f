"""metrics.jsonl: every number of a run, one line per step that was logged. All mirrors follow it.

A line is `{"step": 12, "time": 1763712000.123, "train/loss": 1.23, …}`, and valid JSON: numbers that are not finite are
the texts `"NaN"`, `"Infinity"` and `"-Infinity"`. A crash loses the line that was being written and nothing else.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tunesmith.store import files


@dataclass(frozen=True)
class Line:
    """Numbers of one step. `time_seconds` counts from the Unix epoch, to the millisecond."""

    step: int
    time_seconds: float
    metrics: dict[str, float]

    def to_json(self) -> str:
        """Return the line as it is written, without the newline."""
        shown = {name: value if math.isfinite(value) else _name(value) for name, value in self.metrics.items()}
        return json.dumps({"step": self.step, "time": self.time_seconds} | shown, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read one line.

        Raises:
            ValueError: it is cut off, or not a line of metrics.
        """
        document = json.loads(text)
        try:
            step, seconds = int(document.pop("step")), float(document.pop("time"))
            return cls(step, seconds, {str(name): float(value) for name, value in document.items()})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a line of metrics: {error}") from None


def _name(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def read_metrics(path: Path) -> Iterator[Line]:
    """Yield every whole line of a metrics file, in its order; nothing when there is no file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for text in file:
            try:
                yield Line.from_json(text)
            except ValueError:
                continue


def keep_until(path: Path, step: int | None) -> None:
    """Drop every line after a step (all of them for None) and every line that is not whole, atomically."""
    if not path.exists():
        return
    kept, changed = [], False
    for text in path.read_bytes().splitlines(keepends=True):
        try:
            keep = text.endswith(b"\n") and step is not None and Line.from_json(text).step <= step
        except ValueError:
            keep = False
        changed |= not keep
        kept += [text] if keep else []
    if changed:
        files.write_bytes(path, b"".join(kept))


class MetricsFile:
    """Appends lines, each flushed. Steps never go back, and a number is written once per step.

    The second rule matters after a restart at a step whose line was written before: what is logged again for that step
    is left out.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.last_step = -1
        self._names: set[str] = set()  # already written for `last_step`
        for line in read_metrics(path):
            self._remember(line)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: dict[str, float]) -> Line | None:
        """Append a line and return it; None when all its numbers are there already."""
        assert step >= self.last_step, f"step {step} was logged after step {self.last_step}"
        known = self._names if step == self.last_step else set()
        new = {name: float(value) for name, value in metrics.items() if name not in known}
        if not new:
            return None
        line = Line(step, round(time.time(), 3), new)
        self._file.write(line.to_json() + "\n")
        self._file.flush()
        self._remember(line)
        return line

    def _remember(self, line: Line) -> None:
        if line.step != self.last_step:
            self.last_step, self._names = line.step, set()
        self._names |= set(line.metrics)

    def close(self) -> None:
        self._file.close()
