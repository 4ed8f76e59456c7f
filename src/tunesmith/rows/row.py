"""One row as it was read, good or bad, with its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SHOWN_CHARACTERS = 500


@dataclass(frozen=True)
class Row:
    """One row as read. `line` is a line of the file, or the position of an element in an array or a table, from 1."""

    file: str
    line: int
    value: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """One row that cannot be used, and why; `text` shows its beginning."""

    file: str
    line: int
    reason: str
    text: str


def bad_row(file: str, line: int, reason: str, text: str) -> BadRow:
    """Return the record of a bad row: one line of reason, the first 500 characters, printable as UTF-8."""
    shown = text[:SHOWN_CHARACTERS].encode("utf-8", "replace").decode()
    return BadRow(file, line, " ".join(reason.split()), shown)
