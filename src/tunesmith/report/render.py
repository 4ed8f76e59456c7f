"""Put the sections into one page that needs nothing else: no network, no file beside it."""

from __future__ import annotations

from typing import Any

from tunesmith.report import making, results, speeds
from tunesmith.report.findings import Findings
from tunesmith.report.sheet import sheet


def render(found: Findings) -> str:
    """Return the page."""
    return sheet("page.html", **_sections(found))


def _sections(found: Findings) -> dict[str, Any]:
    return {
        "headline": results.headline(found),
        "evaluation": results.evaluation(found),
        "trained": making.trained(found),
        "curves": making.curves(found),
        "examples": results.examples(found),
        "speed": speeds.speed(found),
        "gate": results.gate(found),
        "merged": making.merged(found),
        "times": making.times(found),
        "lineage": making.lineage(found),
        "recipe_text": found.recipe_text,
    }
