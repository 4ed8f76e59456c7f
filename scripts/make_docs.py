"""Write the generated pages, or check that they are fresh: docs/recipe.md (schema) and docs/cli.md (verbs)."""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def cli_page() -> str:
    """Return `docs/cli.md`: the overview and the help of every verb."""
    from tunesmith.cli.app import VERBS, overview, parser_for

    os.environ["COLUMNS"] = "100"
    lines = ["# The command line", "", "Made from the verbs by `make docs`.", "", "```", overview(), "```", ""]
    for verb in VERBS:
        parser = parser_for(verb)
        lines += [f"## `tunesmith {verb.name}`", "", "```", parser.format_help().rstrip(), "```", ""]
        for action in ("show", "convert") if verb.name == "data" else ():
            text = io.StringIO()
            with redirect_stdout(text):
                try:
                    parser.parse_args([action, "--help"])
                except SystemExit:
                    lines += ["```", text.getvalue().rstrip(), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def pages() -> dict[Path, str]:
    """Return every generated page by path."""
    from tunesmith.recipe.json_schema import recipe_page

    return {ROOT / "docs" / "recipe.md": recipe_page(), ROOT / "docs" / "cli.md": cli_page()}


def main() -> int:
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not fresh: run `make docs`", file=sys.stderr)
        return 1 if stale else 0
    for path, text in pages().items():
        path.write_text(text)
        print(f"{path.relative_to(ROOT)}{' (changed)' if path in stale else ''}")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))
    sys.exit(main())
