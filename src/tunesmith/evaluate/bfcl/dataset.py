"""Items and ground truth, from a directory in the official layout.

    DIR/BFCL_v4_simple_python.json                    one item a line
    DIR/possible_answer/BFCL_v4_simple_python.json    its ground truth, the same number of lines

The version is read from the file names; names of before version 4 (`BFCL_v3_simple.json`) are found, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError
from tunesmith.evaluate.bfcl.categories import Category

_FILE = re.compile(r"BFCL_(v\d+)_(\w+)\.json")
_SHARED_FILES = {"memory": "memory", "web_search": "web_search"}  # several categories ask the same questions


@dataclass(frozen=True)
class Entry:
    """One item of a category.

    Attributes:
        turns: messages of each turn; a single-turn item has one.
        functions: as the data describes them, in BFCL's own types (`dict`, `float`, `tuple`).
        ground_truth: what the category's scorer compares with; empty where there is nothing to compare.
        raw: the whole line, for what only one scorer reads (initial states, involved classes).
    """

    id: str
    turns: tuple[tuple[dict[str, Any], ...], ...]
    functions: tuple[dict[str, Any], ...]
    ground_truth: tuple[Any, ...]
    raw: dict[str, Any]


@dataclass(frozen=True)
class Dataset:
    """The items of one category, in the file's order, and the version of the data, such as `BFCL_v4`."""

    category: Category
    version: str
    entries: tuple[Entry, ...]


def load(category: Category, directory: Path) -> Dataset:
    """Read one category.

    Raises:
        DataError: the directory or a file is missing, a line is no item, or items and ground truth do not match.
    """
    path, version = _find(category, directory)
    lines = _read(path)
    for number, line in enumerate(lines, 1):
        if not (_is_turns(line.get("question")) and _is_functions(line.get("function", []))):
            what = "this is no BFCL item: it needs a `question` (a list of turns) and `function` (a list)"
            raise DataError(what, where=f"{path}:{number}")
    answers = _ground_truth(path, lines) if _has_ground_truth(category) else [()] * len(lines)
    entries = [
        Entry(line["id"], tuple(map(tuple, line["question"])), tuple(line.get("function", [])), tuple(answer), line)
        for line, answer in zip(lines, answers, strict=True)
    ]
    return Dataset(category, version, tuple(entries))


def _has_ground_truth(category: Category) -> bool:
    return category.scorer not in ("irrelevance", "relevance")


def _find(category: Category, directory: Path) -> tuple[Path, str]:
    """Return the newest version's file of a category, and that version."""
    if not directory.is_dir():
        do = "give the directory that holds BFCL_v4_*.json and possible_answer/"
        raise DataError("there is no such directory", where=str(directory), do=do)
    group = next((shared for shared in _SHARED_FILES if category.name.startswith(shared)), "")
    stems = (group,) if group else category.names
    found = {}
    for path in directory.glob("BFCL_v*.json"):
        match = _FILE.fullmatch(path.name)
        if match and match.group(2) in stems:
            found[int(match.group(1)[1:])] = path
    if not found:
        num_files = len(list(directory.glob("BFCL_v*.json")))
        what = f"the directory holds no BFCL_v*_{stems[0]}.json ({num_files} other BFCL files are there)"
        do = "get it from github.com/ShishirPatil/gorilla, berkeley-function-call-leaderboard/bfcl_eval/data"
        raise DataError(what, where=str(directory), do=do)
    newest = max(found)
    return found[newest], f"BFCL_v{newest}"


def _ground_truth(path: Path, items: list[dict[str, Any]]) -> list[Sequence[Any]]:
    """Return the ground truth of items, line by line: the official scorer pairs them by position, too."""
    answers = path.parent / "possible_answer" / path.name
    if not answers.is_file():
        raise DataError("the ground truth of this category is missing", where=str(answers))
    lines = _read(answers)
    if len(lines) != len(items):
        raise DataError(f"{len(lines)} answers for {len(items)} items", where=str(answers))
    for number, (item, line) in enumerate(zip(items, lines, strict=True), 1):
        if item["id"] != line["id"]:
            raise DataError(f"the answer of {line['id']!r} stands where {item['id']!r} is asked", where=str(answers))
        if not isinstance(line.get("ground_truth"), list):
            raise DataError("this line has no list `ground_truth`", where=f"{answers}:{number}")
    return [line["ground_truth"] for line in lines]


def _read(path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                document = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"this line is not JSON: {error}", where=f"{path}:{number}") from None
            if not isinstance(document, dict) or not isinstance(document.get("id"), str):
                raise DataError("this line has no `id`", where=f"{path}:{number}")
            lines.append(document)
    return lines


def _is_turns(turns: Any) -> bool:
    return (
        isinstance(turns, list)
        and bool(turns)
        and all(isinstance(turn, list) and all(isinstance(m, dict) and "role" in m for m in turn) for turn in turns)
    )


def _is_functions(functions: Any) -> bool:
    return isinstance(functions, list) and all(isinstance(f, dict) and "name" in f for f in functions)
