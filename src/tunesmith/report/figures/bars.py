"""Bars: base beside tuned with intervals, throughput per level, how long rows are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tunesmith.report.figures.scales import Scale, label, ticks
from tunesmith.report.figures.svg import drawing, element
from tunesmith.report.wording import number

_LENGTH = 300.0


@dataclass(frozen=True)
class Bar:
    """One value with its 95 % interval."""

    style: str  # base | tuned
    value: float
    low: float | None = None
    high: float | None = None


def comparison(bars: Sequence[Bar], maximum: float, *, told: str) -> Markup:
    """Draw one metric's bars below each other, on a scale from zero to the metric's maximum."""
    top = max([maximum, *(bar.value for bar in bars), *(bar.high for bar in bars if bar.high is not None)])
    x = Scale(0.0, top or 1.0, 0.0, _LENGTH)
    height = 12.0 * len(bars) + 2
    parts = [
        element("line", x1=x(share * top), x2=x(share * top), y1=0, y2=height, class_="grid")
        for share in (0.25, 0.5, 0.75, 1.0)
    ]
    for index, bar in enumerate(bars):
        y = 2.0 + 12 * index
        length = max(1.0, x(max(0.0, bar.value)))
        parts.append(element("rect", x=0, y=y, width=length, height=9, class_=f"bar {bar.style}"))
        if bar.low is not None and bar.high is not None:
            low, high = x(max(0.0, bar.low)), x(bar.high)
            parts.append(element("line", x1=low, x2=high, y1=y + 4.5, y2=y + 4.5, class_="whisker"))
            for end in (low, high):
                parts.append(element("line", x1=end, x2=end, y1=y + 1.5, y2=y + 7.5, class_="whisker"))
    parts.append(element("line", x1=0, x2=0, y1=0, y2=height, class_="axis"))
    return drawing(_LENGTH, height, *parts, label=told, class_="comparison", preserveAspectRatio="none")


def throughput(levels: Sequence[tuple[str, float]], target: float | None, *, told: str) -> Markup | None:
    """Draw tokens per second of each level, with the target as a line."""
    if not levels:
        return None
    left, right, row = 96.0, 18.0, 34.0
    width, height = 470.0, row * len(levels) + 42
    scale = ticks(0.0, max([value for _, value in levels] + ([target] if target else [])), 4)
    x = Scale(0.0, scale[-1], left, width - right)
    bottom = row * len(levels) + 6
    parts = _columns(x, scale, bottom)
    for index, (name, value) in enumerate(levels):
        y = 6 + row * index
        parts.append(element("text", name, x=left - 10, y=y + 19, class_="tick end"))
        bar = element("title", f"{name}: {number(value)} tokens/s")
        parts.append(element("rect", bar, x=left, y=y + 5, width=x(value) - left, height=20, class_="bar tuned"))
        inside = x(value) - left > 80
        place, style = (x(value) - 8, "value end inside") if inside else (x(value) + 7, "value")
        parts.append(element("text", number(value), x=place, y=y + 19, class_=style))
    if target:
        parts.append(element("line", x1=x(target), x2=x(target), y1=2, y2=bottom, class_="target"))
    return drawing(width, height, *parts, label=told, class_="chart")


def histogram(bins: Sequence[tuple[int, int]], *, limit: int | None) -> Markup | None:
    """Draw how many sequences have how many tokens.

    Args:
        bins: (upper edge in tokens, sequences), by rising edge; edges need not be equally far apart.
        limit: `data.max_length`, marked when it is within the drawing.
    """
    if not bins or not any(count for _, count in bins):
        return None
    width, height, left, right, top, bottom = 470.0, 230.0, 52.0, 14.0, 14.0, 40.0
    y_ticks = ticks(0.0, max(count for _, count in bins), 4)
    y = Scale(0.0, y_ticks[-1], height - bottom, top)
    parts = []
    for tick in y_ticks:
        parts.append(element("line", x1=left, x2=width - right, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(element("text", label(tick), x=left - 9, y=y(tick) + 4, class_="tick end"))
    step = (width - left - right) / len(bins)
    every = max(1, -(-len(bins) // 8))
    below = 0
    for index, (edge, count) in enumerate(bins):
        x = left + step * index
        hover = element("title", f"{number(below + 1)} to {number(edge)} tokens: {number(count)} sequences")
        tall = y.begin - y(count)
        parts.append(
            element("rect", hover, x=x + 1, y=y(count), width=max(1.0, step - 2), height=tall, class_="bar tuned")
        )
        if (index + 1) % every == 0:
            parts.append(element("text", label(edge), x=x + step, y=height - 21, class_="tick middle"))
        if edge == limit and index < len(bins) - 1:
            parts.append(element("line", x1=x + step, x2=x + step, y1=top, y2=y.begin, class_="target"))
        below = edge
    parts.append(element("line", x1=left, x2=width - right, y1=y.begin, y2=y.begin, class_="axis"))
    parts.append(element("text", "tokens, up to", x=width - right, y=height - 4, class_="tick end quiet"))
    told = f"Length of sequences: {number(sum(count for _, count in bins))} in {len(bins)} groups"
    return drawing(width, height, *parts, label=told, class_="chart")


def _columns(x: Scale, scale: list[float], bottom: float) -> list[Markup]:
    parts = []
    for tick in scale:
        parts.append(element("line", x1=x(tick), x2=x(tick), y1=2, y2=bottom, class_="grid"))
        parts.append(element("text", label(tick), x=x(tick), y=bottom + 18, class_="tick middle"))
    parts.append(element("text", "tokens per second", x=x.end, y=bottom + 34, class_="tick end quiet"))
    return parts
