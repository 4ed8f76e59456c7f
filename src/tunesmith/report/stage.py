"""Make the page of a run from what its directory holds. Stages that have not run are left out."""

from __future__ import annotations

from tunesmith.artifacts import Report
from tunesmith.recipe.schema import Recipe
from tunesmith.report.findings import read
from tunesmith.report.render import render
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir


def run(recipe: Recipe, run_dir: RunDir) -> Report:
    """Write `run_dir.report_page`, one self-contained HTML file."""
    content = render(read(recipe, run_dir)).encode()
    files.write_bytes(run_dir.report_page, content)
    return Report(path=run_dir.relative(run_dir.report_page), num_bytes=len(content))
