"""Put the sections into one page that needs nothing else: no network, no file beside it."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from tunesmith.report import making, results, speeds, wording
from tunesmith.report.findings import Findings

_TEMPLATES = Path(__file__).parent / "templates"


def render(found: Findings) -> str:
    """Return the page. Whatever a model or a file said is shown as text: every value is escaped.

    The page's own policy (Content-Security-Policy) allows its one style sheet and its one script, by their hashes, and
    nothing else: should a text ever get through as markup, it could neither run nor load anything.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=lambda name: name is None or name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": wording.number,
        "count": wording.count,
        "size": wording.size,
        "milliseconds": wording.milliseconds,
        "share": wording.share,
    }
    style = environment.get_template("style.css").render().strip()
    script = environment.get_template("script.js").render().strip()
    allowed = f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    page = environment.get_template("page.html").render(
        style=Markup(style),
        script=Markup(script),
        policy=policy,
        **_sections(found),
    )
    return wording.printable(page)


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


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
