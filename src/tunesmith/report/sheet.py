"""One self-contained HTML page from a template: style, script and a policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from tunesmith.report import wording

_TEMPLATES = Path(__file__).parent / "templates"


def sheet(template: str, **context: Any) -> str:
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
    page = environment.get_template(template).render(
        style=Markup(style), script=Markup(script), policy=policy, **context
    )
    return wording.printable(page)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
