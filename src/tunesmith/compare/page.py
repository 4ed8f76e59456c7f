"""A comparison as one self-contained page: changes on one axis, numbers side by side, items fixed and broken."""

from __future__ import annotations

from typing import Any

from tunesmith.compare.items import ItemDifferences, common_items
from tunesmith.compare.runs import Comparison, difference, shown
from tunesmith.recipe.environment import redact
from tunesmith.report import wording
from tunesmith.report.examples import compared
from tunesmith.report.figures.forest import NARROW, WIDE, Change, forest
from tunesmith.report.sheet import sheet
from tunesmith.store.run_dir import RunDir

_MAX_ITEMS = 40  # of each kind and task
_MARKS = {"improved": "▲", "regressed": "▼", "cannot tell": "≈"}


def page(comparison: Comparison, runs: list[RunDir]) -> str:
    """Return the page. Items are read once more, for what the models said."""
    by_name = dict(zip(comparison.runs, runs, strict=True))
    pairs = [
        {
            "before": before,
            "after": after,
            "overview": _overview(found),
            "tasks": [_task(each, by_name[before], by_name[after]) for each in found],
        }
        for (before, after), found in _by_pair(comparison.items).items()
    ]
    return sheet(
        "comparison.html",
        runs=comparison.runs,
        pairs=pairs,
        sections=[(head, [_row(line.path, line.values) for line in lines]) for head, lines in _sections(comparison)],
        has_difference=len(comparison.runs) == 2,
    )


def _sections(comparison: Comparison) -> list[tuple[str, list[Any]]]:
    return [(head, list(lines)) for head, lines in comparison.sections(everything=False)]


def _row(path: str, values: tuple[Any, ...]) -> dict[str, Any]:
    told = difference(*values) if len(values) == 2 else ""
    return {"path": path, "cells": [redact(shown(value)) for value in values], "difference": told}


def _by_pair(items: tuple[ItemDifferences, ...]) -> dict[tuple[str, str], list[ItemDifferences]]:
    found: dict[tuple[str, str], list[ItemDifferences]] = {}
    for each in items:
        found.setdefault((each.before, each.after), []).append(each)
    return found


def _overview(found: list[ItemDifferences]) -> list[Any]:
    """Return all changes on one axis. Scores that are no shares (BLEU) are told in points of a hundred already."""
    changes = []
    for task in found:
        for change in task.changes:
            scale = 100.0 if max(change.before, change.after) <= 1.0 else 1.0
            name = f"{wording.task_name(task.task)}: {_metric(change.metric)}"
            told = f"{change.before:.4g} → {change.after:.4g}, {change.in_words}"
            ends = (scale * change.difference_low, scale * change.difference_high)
            changes.append(Change(name, scale * change.difference, *ends, change.verdict, told))
    return [figure for figure in (forest(changes, size) for size in (WIDE, NARROW)) if figure]


def _metric(name: str) -> str:
    return "right" if name == "correct" else wording.metric_name(name)


def _task(found: ItemDifferences, before: RunDir, after: RunDir) -> dict[str, Any]:
    both = common_items(found.task, before, after).answered
    examples = [
        compared(*both[name], kind=kind, names=(found.before, found.after))
        for kind, ids in (("broken", found.broken), ("fixed", found.fixed))
        for name in ids[:_MAX_ITEMS]
    ]
    return {
        "name": wording.task_name(found.task),
        "changes": [
            {"metric": _metric(c.metric), "mark": _MARKS[c.verdict], "verdict": c.verdict, "told": _told(c)}
            for c in found.changes
        ],
        "tally": [
            ("fixed", len(found.fixed), "fixed"),
            ("broken", len(found.broken), "broken"),
            ("right", found.num_right_in_both, "right in both"),
            ("wrong", found.num_wrong_in_both, "wrong in both"),
            ("unanswered", found.num_unanswered, "not answered"),
            ("alone", found.num_alone, "in one run only, or with another prompt or reference"),
        ],
        "examples": examples,
        "num_left_out": len(found.broken) + len(found.fixed) - len(examples),
    }


def _told(change: Any) -> str:
    values = f"{change.before:.4g} → {change.after:.4g}"
    interval = f"{change.difference:+.3g}, 95 % {change.difference_low:+.3g} … {change.difference_high:+.3g}"
    numbers = f"{values} ({interval}, p = {change.p_value:.2g})".replace("-", wording.MINUS)
    return f"{numbers}: {change.in_words}"
