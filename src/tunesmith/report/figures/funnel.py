"""Where rows went: from all that were read, step by step, down to those that were trained on."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from tunesmith.report.figures.scales import Scale
from tunesmith.report.figures.svg import drawing, element
from tunesmith.report.wording import number

_ROW = 32.0


def funnel(num_read: int, losses: Sequence[tuple[str, int]], kept: Sequence[tuple[str, int]]) -> Markup | None:
    """Draw a waterfall: what was read, what was lost and why, and what is left.

    Args:
        losses: (reason, rows), in the order in which rows meet them.
        kept: (use, rows) that the remaining rows are put to, the last one first drawn from zero.
    """
    if num_read <= 0:
        return None
    width, left, right = 470.0, 138.0, 132.0  # right of the bars: a million rows, then 100.0 %
    x = Scale(0.0, float(num_read), left, width - right)
    rows = [("read", 0, num_read, "base")]
    remaining = num_read
    for reason, count in losses:
        rows.append((reason, remaining - count, remaining, "lost"))
        remaining -= count
    for use, count in kept:
        rows.append((use, remaining - count, remaining, "tuned"))
        remaining -= count
    parts = []
    for index, (name, low, high, style) in enumerate(rows):
        y = _ROW * index
        count = high - low
        share = f"{100 * count / num_read:.1f} %" if index else ""
        hover = element("title", f"{name}: {number(count)} rows {share}")
        long = max(1.5, x(high) - x(low))
        parts.append(element("text", name, x=left - 10, y=y + 19, class_="tick end name"))
        parts.append(element("rect", hover, x=x(low), y=y + 6, width=long, height=18, rx=2, class_=f"bar {style}"))
        parts.append(element("text", number(count), x=width - 58, y=y + 19, class_="tick strong end"))
        parts.append(element("text", share, x=width, y=y + 19, class_="tick end"))
        if index + 1 < len(rows):
            edge = x(low if index else high)
            parts.append(element("line", x1=edge, x2=edge, y1=y + 24, y2=y + _ROW + 6, class_="axis faint"))
    told = "; ".join(f"{name} {number(high - low)}" for name, low, high, _ in rows)
    return drawing(width, _ROW * len(rows), *parts, label=f"Rows: {told}", class_="chart")
