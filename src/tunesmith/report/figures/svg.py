"""SVG as escaped text, element by element. Colours and type come from the page's style sheet, by class."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup, escape

Attribute = str | float | int | None


def element(name: str, *children: Markup | str, **attributes: Attribute) -> Markup:
    """Return one element. Texts are escaped; `class_` stands for `class`, underscores for dashes."""
    pairs = []
    for key, value in attributes.items():
        if value is not None:
            shown = _short(value) if isinstance(value, float) else str(value)
            pairs.append(f' {key.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    inside = "".join(str(escape(child)) for child in children)
    head = f"<{name}{''.join(pairs)}"
    return Markup(f"{head}>{inside}</{name}>" if inside else f"{head}/>")


def drawing(width: float, height: float, *children: Markup, label: str, class_: str, **attributes: Attribute) -> Markup:
    """Return a whole figure, named for people who cannot see it."""
    return element(
        "svg",
        element("title", label),
        *children,
        viewBox=f"0 0 {_short(width)} {_short(height)}",
        role="img",
        class_=class_,
        **attributes,
    )


def path(points: Iterable[tuple[float, float] | None]) -> str:
    """Return path data through points; None interrupts the line."""
    pieces, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        pieces.append(f"{pen}{_short(point[0])} {_short(point[1])}")
        pen = "L"
    return "".join(pieces)


def _short(value: float) -> str:
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text
