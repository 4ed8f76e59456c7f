"""A source as conversations: rows read, their format found, bad ones told apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

from tunesmith.errors import DataError
from tunesmith.recipe.schema import RowFormat, Source
from tunesmith.rows.conversation import Conversation, Preference
from tunesmith.rows.formats import BadShape, detect, to_conversation
from tunesmith.rows.sources import BadRow, Row, bad_row, read_rows

_ROWS_TO_DETECT = 50


@dataclass(frozen=True)
class Example:
    """A row that could be understood, and its place."""

    file: str
    line: int
    content: Conversation | Preference


def read_examples(source: Source) -> tuple[RowFormat | None, Iterator[Example | BadRow]]:
    """Return a source's format and its rows, in order; the format is None when there is no good row to tell it by.

    Raises:
        DataError: as `read_rows` and `detect`, now or while the rows are read.
    """
    rows = read_rows(source)
    head = list(islice(rows, _ROWS_TO_DETECT))
    values = [row.value for row in head if isinstance(row, Row)]
    if source.format != "auto":
        row_format: RowFormat | None = source.format
    elif values:
        try:
            row_format = detect(values)
        except DataError as error:
            raise DataError(error.what, where=error.where or source.path, do=error.do) from None
    else:
        row_format = None
    return row_format, (_example(row, row_format) for row in chain(head, rows))


def _example(row: Row | BadRow, row_format: RowFormat | None) -> Example | BadRow:
    if isinstance(row, BadRow):
        return row
    if row_format is None:
        return bad_row(row.file, row.line, "the rows before it were bad, so its format is not known", _shown(row))
    try:
        return Example(row.file, row.line, to_conversation(row.value, row_format))
    except BadShape as problem:
        return bad_row(row.file, row.line, str(problem), _shown(row))


def _shown(row: Row) -> str:
    import json

    return json.dumps(row.value, ensure_ascii=False, default=str)
