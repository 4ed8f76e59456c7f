"""Make the page of a run from what its directory holds. Stages that have not run are left out."""

from __future__ import annotations

from tunesmith.artifacts import Report
from tunesmith.recipe.schema import Recipe
from tunesmith.report.document import document
from tunesmith.report.findings import read
from tunesmith.report.markdown import summary
from tunesmith.report.render import render
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir


def run(recipe: Recipe, run_dir: RunDir) -> Report:
    """Write one self-contained HTML file, the same for machines as JSON, and the same in short as Markdown."""
    found = read(recipe, run_dir)
    content = render(found).encode()
    files.write_bytes(run_dir.report_page, content)
    files.write_text(run_dir.report_document, document(found))
    files.write_text(run_dir.report_summary, summary(found))
    return Report(
        path=run_dir.relative(run_dir.report_page),
        num_bytes=len(content),
        document=run_dir.relative(run_dir.report_document),
        summary=run_dir.relative(run_dir.report_summary),
    )
