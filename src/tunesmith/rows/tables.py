"""CSV and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import IO, Any

from tunesmith.errors import DataError, missing_extra
from tunesmith.rows.row import BadRow, Row, bad_row

_BATCH_ROWS = 256
_LONGEST_FIELD_BYTES = 1 << 30
_DELIMITERS = ",;\t"


def read_csv(file: IO[bytes], name: str) -> Iterator[Row | BadRow]:
    """Yield the rows of a CSV file with a header; `line` is where the row begins.

    The delimiter (comma, semicolon or tab) is the one the header uses most.

    Raises:
        DataError: the header is empty or repeats a name, or a quote is never closed.
    """
    # The limit is process-wide and only ever guards against memory: long answers are common here.
    csv.field_size_limit(_LONGEST_FIELD_BYTES)
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    first = text.readline()
    if not first.strip():
        if text.read(1):
            raise DataError("the first line of the CSV file is empty", where=f"{name}:1", do="give it a header")
        return
    if first.startswith("\udcff\udcfe") or "\0" in first:
        raise DataError("the file is not UTF-8 text", where=name, do="save it as UTF-8")
    delimiter = max(_DELIMITERS, key=first.count)
    text.seek(0)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header = _header(reader, name)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                what = "a quoted field begins in this row and never ends"
                raise DataError(
                    what, where=f"{name}:{line}", do='close the quote, or write a quote in it as ""'
                ) from None
            yield bad_row(name, line, f"not valid CSV: {error}", "")
            continue
        if fields:
            yield _csv_row(name, line, header, fields)


def _header(reader: Any, name: str) -> list[str]:
    try:
        header = [column.strip() for column in next(reader)]
    except (csv.Error, StopIteration) as error:
        raise DataError(f"the header of the CSV file cannot be read: {error}", where=f"{name}:1") from None
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise DataError(f"the header repeats the column {repeated[0]!r}", where=f"{name}:1", do="rename one of them")
    return header


def _csv_row(name: str, line: int, header: list[str], fields: list[str]) -> Row | BadRow:
    joined = ",".join(fields)
    if len(fields) != len(header):
        return bad_row(name, line, f"the header names {len(header)} fields, the row has {len(fields)}", joined)
    if "\0" in joined:
        return bad_row(name, line, "the row holds a NUL byte", joined)
    try:
        joined.encode("utf-8")
    except UnicodeEncodeError:
        return bad_row(name, line, "not valid UTF-8", joined)
    return Row(name, line, dict(zip(header, fields, strict=True)))


def read_parquet(file: IO[bytes], name: str) -> Iterator[Row | BadRow]:
    """Yield the rows of a Parquet file, a few hundred at a time; `line` is the row's position.

    Raises:
        DataError: the file is damaged.
        EnvironmentProblem: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise missing_extra("pyarrow", "data", needed_for=f"reading {name}") from None
    seekable = io.BytesIO(file.read()) if name.endswith(".gz") else file
    number = 0
    try:
        for batch in parquet.ParquetFile(seekable).iter_batches(_BATCH_ROWS):
            for value in batch.to_pylist():
                number += 1
                yield table_row(name, number, value)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        behind = f" behind row {number}" if number else ""
        raise DataError(f"the Parquet file cannot be read{behind}: {reason}", where=name) from None


def table_row(name: str, number: int, value: dict[str, Any]) -> Row | BadRow:
    """Return a row of a column store in JSON terms.

    Columns give every record the same fields and fill up with null: fields that are null inside a record are left out
    again, so that tool arguments are what they were before they became columns.
    """
    try:
        return Row(name, number, {key: _json_value(item) for key, item in value.items()})
    except ValueError as error:
        return bad_row(name, number, str(error), repr(value))


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{value} is not a number that JSON knows")
        return value
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("a binary value is not valid UTF-8") from None
    return str(value)
