"""Line charts over training steps: loss, learning rate, throughput."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tunesmith.report.figures.scales import LogScale, Scale, label, log_ticks, ticks
from tunesmith.report.figures.svg import drawing, element, path
from tunesmith.report.wording import number

Point = tuple[float, float | None]  # step, value; None where the value was not finite


@dataclass(frozen=True)
class Curve:
    """One line. `style` is one of the page's classes: main, second, faint."""

    name: str
    points: Sequence[Point]
    style: str = "main"
    has_dots: bool = False


@dataclass(frozen=True)
class Size:
    """Of the drawing, in its own units; the page scales it to the room there is."""

    width: float
    height: float
    class_: str


WIDE = Size(960, 340, "chart wide")
NARROW = Size(420, 300, "chart narrow")
SMALL = Size(470, 230, "chart")

_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 14.0, 12.0, 40.0


def spans_decades(curves: Sequence[Curve]) -> bool:
    """Whether a linear axis would press most of the curves onto its bottom: half of the values below a twentieth."""
    values = sorted(value for curve in curves for _, value in curve.points if value is not None)
    return len(values) > 3 and values[0] > 0 and 20 * values[len(values) // 2] < values[-1]


def line_chart(
    curves: Sequence[Curve], size: Size, *, title: str, starts_at_zero: bool = False, logarithmic: bool = False
) -> Markup | None:
    """Draw curves over steps, or return None when there is nothing to draw. `logarithmic` needs values above zero."""
    values = [value for curve in curves for _, value in curve.points if value is not None]
    steps = [step for curve in curves for step, value in curve.points if value is not None]
    if not values:
        return None
    if logarithmic:
        y_ticks = log_ticks(min(values), max(values))
    else:
        y_ticks = ticks(0.0 if starts_at_zero else min(values), max(values), 5 if size.height > 250 else 4)
    x_ticks = [tick for tick in ticks(min(steps), max(steps), 8 if size.width > 600 else 5) if tick == int(tick)]
    x = Scale(min(steps), max(max(steps), min(steps) + 1), _LEFT, size.width - _RIGHT)
    y = (LogScale if logarithmic else Scale)(y_ticks[0], y_ticks[-1], size.height - _BOTTOM, _TOP)
    parts = _grid(x, y, [tick for tick in x_ticks if x.low <= tick <= x.high], y_ticks, size)
    for curve in curves:
        parts.append(_line(curve, x, y))
        if curve.has_dots or len(curve.points) == 1:
            parts += [_dot(curve, x(step), y(value)) for step, value in curve.points if value is not None]
    frame = [x.low, x.high, x.begin, x.end, y.low, y.high, y.begin, y.end]
    hover = [{"name": c.name, "style": c.style, "points": _packed(c)} for c in curves if c.style != "faint"]
    return drawing(
        size.width,
        size.height,
        *parts,
        label=_told(title, curves),
        class_=size.class_,
        data_frame=json.dumps(frame),
        data_curves=json.dumps(hover, separators=(",", ":"), ensure_ascii=False),
    )


def _grid(x: Scale, y: Scale, x_ticks: list[float], y_ticks: list[float], size: Size) -> list[Markup]:
    parts = []
    for tick in y_ticks:
        height = y(tick)
        parts.append(element("line", x1=x.begin, x2=x.end, y1=height, y2=height, class_="grid"))
        parts.append(element("text", label(tick), x=x.begin - 9, y=height + 4, class_="tick end"))
    for tick in x_ticks:
        place = x(tick)
        parts.append(element("line", x1=place, x2=place, y1=y.begin, y2=y.begin + 5, class_="axis"))
        parts.append(element("text", label(tick), x=place, y=y.begin + 19, class_="tick middle"))
    parts.append(element("line", x1=x.begin, x2=x.end, y1=y.begin, y2=y.begin, class_="axis"))
    parts.append(element("text", "step", x=x.end, y=size.height - 5, class_="tick end quiet"))
    return parts


def _line(curve: Curve, x: Scale, y: Scale) -> Markup:
    points = ((x(step), y(value)) if value is not None else None for step, value in curve.points)
    return element("path", d=path(points), class_=f"curve {curve.style}")


def _dot(curve: Curve, x: float, y: float) -> Markup:
    return element("circle", cx=x, cy=y, r=3.2, class_=f"dot {curve.style}")


def _packed(curve: Curve) -> list[list[float]]:
    """Return steps and values for the hover script, four digits each."""
    return [[step, float(f"{value:.4g}")] for step, value in curve.points if value is not None]


def _told(title: str, curves: Sequence[Curve]) -> str:
    """Say in words what the figure shows."""
    parts = []
    for curve in curves:
        known = [(step, value) for step, value in curve.points if value is not None]
        if known and curve.style != "faint":
            (first, from_value), (last, to_value) = known[0], known[-1]
            parts.append(
                f"{curve.name} from {number(from_value)} at step {number(int(first))} "
                f"to {number(to_value)} at step {number(int(last))}"
            )
    return f"{title}: {'; '.join(parts)}"
