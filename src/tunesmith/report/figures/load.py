"""What a server gives as its load grows: one curve per statistic over the load, at the levels that were tested."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tunesmith.report.figures.scales import LogScale, Scale, label, ticks
from tunesmith.report.figures.svg import drawing, element, path
from tunesmith.report.wording import number

_WIDTH, _HEIGHT = 470.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 26.0, 16.0, 44.0
_LETTER = 8.0  # width of a digit
_FAR_APART = 4.0  # above this ratio of the largest load to the smallest, equal steps are equal factors


@dataclass(frozen=True)
class Line:
    """One statistic, with a value or None per level. `style` is one of the page's classes: main, second, faint."""

    name: str
    values: Sequence[float | None]
    style: str = "main"


def over_load(
    levels: Sequence[float], lines: Sequence[Line], target: float | None, *, title: str, axis: str, unit: str
) -> Markup | None:
    """Draw values over growing loads, or return None with fewer than two to join."""
    known = [value for line in lines for value in line.values if value is not None]
    if len(set(levels)) < 2 or not known:
        return None
    near = target if target is not None and target <= 2.5 * max(known) else None
    scale = ticks(0.0, max([*known, near or 0.0]), 4)
    y = Scale(scale[0], scale[-1], _HEIGHT - _BOTTOM, _TOP)
    is_far = levels[-1] > _FAR_APART * levels[0] > 0
    x = (LogScale if is_far else Scale)(levels[0], levels[-1], _LEFT + 14, _WIDTH - _RIGHT)
    parts = []
    for tick in scale:
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(element("text", label(tick), x=_LEFT - 8, y=y(tick) + 4, class_="tick end"))
    for place, text in _labels(levels, x):
        parts.append(element("line", x1=place, x2=place, y1=y.begin, y2=y.begin + 5, class_="axis"))
        parts.append(element("text", text, x=place, y=y.begin + 19, class_="tick middle"))
    parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y.begin, y2=y.begin, class_="axis"))
    if near is not None:
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y(near), y2=y(near), class_="target"))
    for line in lines:
        parts += _line(line, levels, x, y, unit, is_named=len(lines) > 1)
    parts.append(element("text", axis, x=_WIDTH - _RIGHT, y=_HEIGHT - 6, class_="tick end quiet"))
    return drawing(_WIDTH, _HEIGHT, *parts, label=_told(title, levels, lines, unit), class_="chart")


def _labels(levels: Sequence[float], x: Scale) -> list[tuple[float, str]]:
    """Return places and texts of the loads, from the largest down, without those that would touch."""
    labels: list[tuple[float, str]] = []
    free = math.inf
    for level in reversed(levels):
        place, text = x(level), f"{level:g}"
        half = (len(text) + 0.5) * _LETTER / 2
        if place + half <= free:
            labels.append((place, text))
            free = place - half
    return labels


def _line(line: Line, levels: Sequence[float], x: Scale, y: Scale, unit: str, *, is_named: bool) -> list[Markup]:
    points = [
        (x(level), y(value)) if value is not None else None for level, value in zip(levels, line.values, strict=True)
    ]
    parts = [element("path", d=path(points), class_=f"curve {line.style}")]
    for level, value, point in zip(levels, line.values, points, strict=True):
        if value is not None and point is not None:
            hover = element("title", f"{line.name} at {level:g}: {number(value, 3)} {unit}")
            parts.append(element("circle", hover, cx=point[0], cy=point[1], r=4.0, class_=f"dot {line.style}"))
    last = next((point for point in reversed(points) if point is not None), None)
    if is_named and last is not None:
        parts.append(element("text", line.name, x=last[0] - 9, y=last[1] - 7, class_="tick end"))
    return parts


def _told(title: str, levels: Sequence[float], lines: Sequence[Line], unit: str) -> str:
    """Say in words what the figure shows."""
    told = [
        f"{line.name} at {level:g} {number(value, 3)} {unit}"
        for line in lines
        for level, value in zip(levels, line.values, strict=True)
        if value is not None
    ]
    return f"{title}: {'; '.join(told)}"
