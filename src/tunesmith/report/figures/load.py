"""What a server gives as its load grows: one line per statistic over the levels of the load test, evenly spaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tunesmith.report.figures.scales import Scale, label, ticks
from tunesmith.report.figures.svg import drawing, element, path
from tunesmith.report.wording import number

_WIDTH, _HEIGHT = 470.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 26.0, 16.0, 44.0


@dataclass(frozen=True)
class Line:
    """One statistic, with a value or None per level. `style` is one of the page's classes: main, second, faint."""

    name: str
    values: Sequence[float | None]
    style: str = "main"


def over_load(
    levels: Sequence[str], lines: Sequence[Line], target: float | None, *, title: str, axis: str, unit: str
) -> Markup | None:
    """Draw values over levels, or return None with fewer than two levels to join."""
    known = [value for line in lines for value in line.values if value is not None]
    if len(levels) < 2 or not known:
        return None
    near = target if target is not None and target <= 2.5 * max(known) else None
    scale = ticks(0.0, max([*known, near or 0.0]), 4)
    y = Scale(scale[0], scale[-1], _HEIGHT - _BOTTOM, _TOP)
    x = Scale(0.0, float(len(levels) - 1), _LEFT + 14, _WIDTH - _RIGHT)
    parts = []
    for tick in scale:
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(element("text", label(tick), x=_LEFT - 8, y=y(tick) + 4, class_="tick end"))
    for index, level in enumerate(levels):
        parts.append(element("text", level, x=x(index), y=y.begin + 18, class_="tick middle"))
    parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y.begin, y2=y.begin, class_="axis"))
    if near is not None:
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y(near), y2=y(near), class_="target"))
    for line in lines:
        parts += _line(line, levels, x, y, unit)
    parts.append(element("text", axis, x=_WIDTH - _RIGHT, y=_HEIGHT - 6, class_="tick end quiet"))
    return drawing(_WIDTH, _HEIGHT, *parts, label=_told(title, levels, lines, unit), class_="chart")


def _line(line: Line, levels: Sequence[str], x: Scale, y: Scale, unit: str) -> list[Markup]:
    points = [(x(index), y(value)) if value is not None else None for index, value in enumerate(line.values)]
    parts = [element("path", d=path(points), class_=f"curve {line.style}")]
    for level, value, point in zip(levels, line.values, points, strict=True):
        if value is not None and point is not None:
            hover = element("title", f"{line.name} at {level}: {number(value, 3)} {unit}")
            parts.append(element("circle", hover, cx=point[0], cy=point[1], r=4.0, class_=f"dot {line.style}"))
    return parts


def _told(title: str, levels: Sequence[str], lines: Sequence[Line], unit: str) -> str:
    """Say in words what the figure shows."""
    told = [
        f"{line.name} at {level} {number(value, 3)} {unit}"
        for line in lines
        for level, value in zip(levels, line.values, strict=True)
        if value is not None
    ]
    return f"{title}: {'; '.join(told)}"
