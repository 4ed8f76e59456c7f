"""Every change from base to tuned on one axis: a dot for the difference, a line for its 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tunesmith.report.figures.lines import Size
from tunesmith.report.figures.scales import Scale, label, ticks
from tunesmith.report.figures.svg import drawing, element
from tunesmith.report.wording import MINUS

WIDE = Size(960, 0, "chart wide")  # the height follows from the number of changes
NARROW = Size(420, 0, "chart narrow")
_ROW, _TWO_LINES = 24.0, 38.0
_STYLES = {"improved": "good", "regressed": "bad"}


@dataclass(frozen=True)
class Change:
    """One metric's difference in points: per cent of its scale, positive when the tuned model is better."""

    name: str
    points: float
    low: float | None
    high: float | None
    verdict: str
    told: str


def forest(changes: Sequence[Change], size: Size) -> Markup | None:
    """Draw changes below each other, the largest gain first."""
    if not changes:
        return None
    is_wide = size.width > 600
    left, right, top = (300.0, 70.0, 6.0) if is_wide else (10.0, 52.0, 6.0)
    tall = _ROW if is_wide else _TWO_LINES
    ordered = sorted(changes, key=lambda change: -change.points)
    ends = [end for c in ordered for end in (c.points, c.low, c.high) if end is not None]
    scale = ticks(min(0.0, *ends), max(0.0, *ends), 6 if is_wide else 4)
    x = Scale(scale[0], scale[-1], left, size.width - right)
    bottom = top + tall * len(ordered)
    parts = []
    for tick in scale:
        style = "axis" if tick == 0 else "grid"
        parts.append(element("line", x1=x(tick), x2=x(tick), y1=top, y2=bottom, class_=style))
        parts.append(element("text", label(tick), x=x(tick), y=bottom + 17, class_="tick middle"))
    for index, change in enumerate(ordered):
        middle = top + tall * index + (tall / 2 if is_wide else 26.0)
        parts += [_name(change, x, middle, is_wide=is_wide), *_row(change, x, middle)]
    parts.append(element("text", "points, better →", x=x.end, y=bottom + 33, class_="tick end quiet"))
    told = "; ".join(f"{change.name} {change.told}" for change in ordered)
    return drawing(size.width, bottom + 38, *parts, label=f"Changes. {told}", class_=size.class_)


def _name(change: Change, x: Scale, y: float, *, is_wide: bool) -> Markup:
    """Return the name: left of its row where there is room, above it elsewhere."""
    room = 43 if is_wide else 62
    name = change.name if len(change.name) <= room else f"{change.name[: room - 1]}…"
    hover = element("title", f"{change.name}: {change.told}")
    if is_wide:
        return element("text", hover, name, x=x.begin - 12, y=y + 4, class_="tick end name")
    return element("text", hover, name, x=0, y=y - 11, class_="tick name")


def _row(change: Change, x: Scale, y: float) -> list[Markup]:
    style = _STYLES.get(change.verdict, "unsure")
    parts = []
    if change.low is not None and change.high is not None:
        parts.append(element("line", x1=x(change.low), x2=x(change.high), y1=y, y2=y, class_=f"span {style}"))
    parts.append(
        element("circle", element("title", change.told), cx=x(change.points), cy=y, r=4.5, class_=f"dot {style}")
    )
    shown = f"{change.points:+.1f}".replace("-", MINUS)
    parts.append(element("text", shown, x=x.end + 10, y=y + 4, class_=f"tick strong {style}"))
    return parts
