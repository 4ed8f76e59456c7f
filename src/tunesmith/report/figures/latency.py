"""How long requests took: every request a mark, the median and the tail named, one row per concurrency level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tunesmith.report.figures.scales import Scale, label, ticks
from tunesmith.report.figures.svg import drawing, element
from tunesmith.report.wording import milliseconds

_MAX_MARKS = 400


@dataclass(frozen=True)
class Level:
    """Times of one level in milliseconds; `samples` may be empty when only the percentiles are known."""

    name: str
    samples: Sequence[float]
    median: float
    p95: float
    p99: float | None


def latency_chart(levels: Sequence[Level], target_ms: float | None, *, title: str) -> Markup | None:
    """Draw levels below each other on one scale from zero."""
    if not levels:
        return None
    left, right, row, width = 96.0, 18.0, 50.0, 470.0
    bottom = row * len(levels) + 8
    longest = max(max([*level.samples, level.p95, level.p99 or 0.0]) for level in levels)
    near_target = target_ms if target_ms is not None and target_ms <= 2.5 * longest else None
    scale = ticks(0.0, max(longest, near_target or 0.0), 4)
    x = Scale(0.0, scale[-1], left, width - right)
    parts = []
    for tick in scale:
        parts.append(element("line", x1=x(tick), x2=x(tick), y1=4, y2=bottom, class_="grid"))
        parts.append(element("text", _milliseconds(tick, scale[-1]), x=x(tick), y=bottom + 18, class_="tick middle"))
    for index, level in enumerate(levels):
        parts += _row(level, x, 8 + row * index)
    if near_target is not None:
        parts.append(element("line", x1=x(near_target), x2=x(near_target), y1=4, y2=bottom, class_="target"))
    unit = "seconds" if scale[-1] >= 10_000 else "milliseconds"
    parts.append(element("text", unit, x=x.end, y=bottom + 34, class_="tick end quiet"))
    told = "; ".join(
        f"{level.name}: median {milliseconds(level.median)}, 95 % within {milliseconds(level.p95)}" for level in levels
    )
    return drawing(width, bottom + 40, *parts, label=f"{title}. {told}", class_="chart")


def _row(level: Level, x: Scale, y: float) -> list[Markup]:
    parts = [element("text", level.name, x=x.begin - 10, y=y + 22, class_="tick end")]
    samples = sorted(level.samples)
    step = max(1, len(samples) // _MAX_MARKS)
    marks = "".join(f"M{x(value):.1f} {y + 10:.0f}v18" for value in [*samples[::step], *samples[-3:]])
    if marks:
        parts.append(element("path", d=marks, class_="marks"))
    band = element("title", f"{level.name}: median {milliseconds(level.median)}, p95 {milliseconds(level.p95)}")
    length = max(1.0, x(level.p95) - x(level.median))
    parts.append(element("rect", band, x=x(level.median), y=y + 16, width=length, height=6, rx=3, class_="bar tuned"))
    told = f"median {milliseconds(level.median)}"
    parts.append(element("circle", element("title", told), cx=x(level.median), cy=y + 19, r=6, class_="dot main"))
    parts.append(
        element(
            "path",
            element("title", f"p95 {milliseconds(level.p95)}"),
            d=f"M{x(level.p95):.1f} {y + 8:.0f}v22",
            class_="percentile",
        )
    )
    if level.p99 is not None:
        told = f"p99 {milliseconds(level.p99)}"
        parts.append(
            element("path", element("title", told), d=f"M{x(level.p99):.1f} {y + 12:.0f}v14", class_="percentile far")
        )
    return parts


def _milliseconds(tick: float, last: float) -> str:
    return label(tick / 1000) if last >= 10_000 else label(tick)
