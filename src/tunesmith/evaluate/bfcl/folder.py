"""Score a directory of answers: one file per category, the leaderboard's summary numbers over all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, UsageError
from tunesmith.evaluate.bfcl.categories import CATEGORIES, Accuracy, Category, aggregate, expand
from tunesmith.evaluate.bfcl.decoding import Protocol
from tunesmith.evaluate.bfcl.responses import Scored, answers_of, score_all

_NAMES = re.compile(r"(?:BFCL_v\d+_)?(?P<category>\w+?)(?:_result)?\.jsonl?")
_SCORED = ("calls", "irrelevance", "relevance", "multi_turn", "format_sensitivity")


@dataclass(frozen=True)
class ScoredFolder:
    """Every category's outcome, in the official order.

    Attributes:
        left_out: files of categories that are not scored from answers alone.
    """

    categories: tuple[Scored, ...]
    left_out: tuple[Path, ...]

    @property
    def summary(self) -> dict[str, Accuracy]:
        """The leaderboard's summary numbers of which no part is missing, no category and no answer."""
        measured = {
            scored.category: Accuracy(scored.accuracy, scored.total_count, is_complete=not scored.num_missing)
            for scored in self.categories
        }
        return {name: accuracy for name, accuracy in aggregate(measured).items() if accuracy.is_complete}

    def as_json(self) -> dict[str, Any]:
        return {
            "categories": [scored.as_json() for scored in self.categories],
            "summary": {
                name: {"accuracy": accuracy.value, "total_count": accuracy.num_items}
                for name, accuracy in self.summary.items()
            },
        }


def score_folder(
    answers: Path, directory: Path, out: Path, protocol: Protocol = "prompt", only: Sequence[str] = ()
) -> ScoredFolder:
    """Write `out/CATEGORY.jsonl` for each file of answers below a directory.

    Args:
        answers: holds `BFCL_v4_CATEGORY_result.json`, as official result directories do, or `CATEGORY.jsonl`, at any
            depth.
        directory: the data, see `dataset.load`.
        out: made when needed; a file of the same category is replaced.
        only: names of categories and collections; empty for every file.

    Raises:
        UsageError: verdicts would replace answers, two files answer one category, or a name is unknown.
        DataError: nothing is there to score, or a file cannot be used; nothing is written.
    """
    if answers.resolve() == out.resolve():
        raise UsageError("the verdicts would lie among the answers", where=str(out), do="give another directory")
    wanted = {known.name for known in expand(only)} if only else set(CATEGORIES)
    found = {known: path for known, path in answer_files(answers, out).items() if known.name in wanted}
    scored = {known: path for known, path in found.items() if known.scorer in _SCORED}
    if not scored:
        do = "name files CATEGORY.jsonl or BFCL_v4_CATEGORY_result.json; `tunesmith bfcl categories` lists the names"
        raise DataError("no file of answers to score lies there", where=str(answers), do=do)
    read = [answers_of(known, directory, path, protocol) for known, path in scored.items()]
    out.mkdir(parents=True, exist_ok=True)
    return ScoredFolder(
        tuple(score_all(read, [out / f"{known.name}.jsonl" for known in scored])),
        tuple(path for known, path in found.items() if known not in scored),
    )


def answer_files(answers: Path, out: Path) -> dict[Category, Path]:
    """Return the files of answers below a directory by category, in the official order; those below `out` are none.

    Raises:
        UsageError: a category has two, as where several models' answers lie below one directory.
    """
    by_name = {name: known for known in CATEGORIES.values() for name in known.names}
    found: dict[Category, Path] = {}
    for path in sorted(answers.rglob("*.json*")):
        match = _NAMES.fullmatch(path.name)
        known = by_name.get(match["category"]) if match else None
        if known is None or not path.is_file() or out.resolve() in path.resolve().parents:
            continue
        if known in found:
            what = f"two files answer {known.name}: {found[known]} and this one"
            raise UsageError(what, where=str(path), do="give the directory of one model's answers")
        found[known] = path
    return {known: found[known] for known in CATEGORIES.values() if known in found}
