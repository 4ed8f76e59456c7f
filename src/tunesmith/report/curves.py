"""metrics.jsonl as curves, thinned out so that no peak is lost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate

from tunesmith.report.figures.lines import Point
from tunesmith.track.jsonl import Line

_MAX_BUCKETS = 220  # two points each
_MIN_POINTS_TO_SMOOTH = 40


@dataclass
class Series:
    """All values of one metric, in order."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def num_not_finite(self) -> int:
        return sum(not math.isfinite(value) for value in self.values)

    def last_finite(self) -> float | None:
        return next((value for value in reversed(self.values) if math.isfinite(value)), None)

    def points(self) -> list[Point]:
        """Return at most a few hundred points: of each stretch of steps its lowest and its highest value."""
        pairs: list[Point] = [
            (s, v if math.isfinite(v) else None) for s, v in zip(self.steps, self.values, strict=True)
        ]
        return _thinned(pairs)

    def smoothed(self) -> list[Point]:
        """Return the mean over a fortieth of the run around each step, or nothing when there are too few points."""
        pairs = [(s, v) for s, v in zip(self.steps, self.values, strict=True) if math.isfinite(v)]
        if len(pairs) < _MIN_POINTS_TO_SMOOTH:
            return []
        reach = max(2, len(pairs) // 80)
        sums = [0.0, *accumulate(value for _, value in pairs)]
        points: list[Point] = []
        for index, (step, _) in enumerate(pairs):
            near = min(reach, index, len(pairs) - 1 - index)  # narrower at the ends, where it would lean to one side
            first, last = index - near, index + near + 1
            points.append((step, (sums[last] - sums[first]) / (last - first)))
        stride = max(1, len(points) // _MAX_BUCKETS)
        return points if stride == 1 else [*points[:-1:stride], points[-1]]


def collect(lines: Iterable[Line]) -> dict[str, Series]:
    """Return every metric's series."""
    found: dict[str, Series] = {}
    for line in lines:
        for name, value in line.metrics.items():
            series = found.setdefault(name, Series())
            series.steps.append(line.step)
            series.values.append(value)
    return found


def _thinned(points: list[Point]) -> list[Point]:
    if len(points) <= 2 * _MAX_BUCKETS:
        return points
    width = len(points) / _MAX_BUCKETS
    kept: list[Point] = [points[0]]
    for bucket in range(_MAX_BUCKETS):
        stretch = points[int(bucket * width) : int((bucket + 1) * width)]
        finite = [(value, index) for index, (_, value) in enumerate(stretch) if value is not None]
        if not finite:
            kept.append(stretch[0])
            continue
        for index in sorted({min(finite)[1], max(finite)[1]}):
            if stretch[index] != kept[-1]:
                kept.append(stretch[index])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]
