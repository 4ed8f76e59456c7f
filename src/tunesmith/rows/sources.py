"""Rows out of files and data sets: streamed, each with the place it came from.

What is wrong with one row becomes a `BadRow`; what is wrong with a whole file (it is missing, half a gzip, a broken
array: rows behind the break would be lost without a word) is a `DataError`.
"""

from __future__ import annotations

import glob
import gzip
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, cast

from tunesmith.errors import DataError, nearest, starting_point
from tunesmith.recipe.environment import expand
from tunesmith.recipe.schema import Source
from tunesmith.rows.json_files import read_json
from tunesmith.rows.row import BadRow, Row, bad_row
from tunesmith.rows.tables import read_csv, read_parquet

__all__ = ["BadRow", "Row", "bad_row", "is_hub_id", "open_file", "read_rows", "resolved_revision", "source_files"]

_GLOB_CHARACTERS = frozenset("*?[")


def read_rows(source: Source) -> Iterator[Row | BadRow]:
    """Yield the rows of a source in order, at most `max_rows` of them, columns renamed.

    Raises:
        DataError: a file is missing, of an unknown kind or damaged as a whole; a data set cannot be reached.
        EnvironmentProblem: a package that reads this kind of file is not installed.
    """
    rows = _read_files(source) if not is_hub_id(source) else _read_hub(source)
    for row in islice(rows, source.max_rows):
        yield _renamed(row, source.columns) if isinstance(row, Row) and source.columns else row


def source_files(source: Source) -> list[Path]:
    """Return the files of a local source, sorted; none for a data set on the Hub.

    Raises:
        DataError: there is no such file, the glob matches nothing, or a directory holds no file of a known kind.
    """
    if is_hub_id(source):
        return []
    text = expand(source.path)
    path = Path(text).expanduser()
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if _is_visible_file(file, path) and _kind(file))
        if not inside:
            raise DataError(f"the directory {text} holds no file of a known kind", do=f"known: {_known_kinds()}")
        return inside
    if path.exists():
        return [path]
    if _GLOB_CHARACTERS & set(text):
        # pathlib's globs start from a directory; this one takes any pattern, absolute or not.
        found = glob.glob(str(path), recursive=True)  # noqa: PTH207
        matches = sorted(Path(match) for match in found if Path(match).is_file())
        if not matches:
            do = f"check the pattern{starting_point(text)}; `**` descends into directories"
            raise DataError(f"no file matches {text}", do=do)
        return matches
    beside = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
    near = nearest(path.name, beside)
    do = f"did you mean {path.parent / near}?" if near else f"check the path{starting_point(text)}"
    raise DataError(f"there is no file {text}", do=do)


def is_hub_id(source: Source) -> bool:
    """Return whether a source names a data set on the Hub: `owner/name`, and nothing of that name is here."""
    text = expand(source.path)
    parts = text.split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~") or _GLOB_CHARACTERS & set(text):
        return False
    return not Path(text).exists() and _kind(Path(text)) is None and not Path(parts[0]).is_dir()


def resolved_revision(source: Source) -> str | None:
    """Return the commit of a Hub data set that was loaded; where it has none, the library's hash of its content."""
    from tunesmith.rows import hub

    dataset = hub.load(source)
    return hub.commit(dataset) or source.revision or hub.content_hash(dataset)


def _read_hub(source: Source) -> Iterator[Row | BadRow]:
    from tunesmith.rows import hub

    return hub.rows(source)


def _read_files(source: Source) -> Iterator[Row | BadRow]:
    for path in source_files(source):
        read = _kind(path)
        if read is None:
            raise DataError(
                f"files of the kind {path.suffix or path.name!r} cannot be read", where=str(path), do=_known()
            )
        try:
            with open_file(path) as file:
                yield from read(file, str(path))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"the gzip file is damaged: {error}", where=str(path), do="copy or make it again") from None
        except OSError as error:
            raise DataError(f"the file cannot be read: {error.strerror or error}", where=str(path)) from None


def open_file(path: Path) -> IO[bytes]:
    """Open a file for reading bytes, unpacked when its name ends in .gz."""
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


Reader = Callable[[IO[bytes], str], Iterator[Row | BadRow]]


def _kind(path: Path) -> Reader | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return _READERS.get(suffixes[-1]) if suffixes else None


_READERS: dict[str, Reader] = {
    ".json": read_json,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}


def _known_kinds() -> str:
    return ", ".join(_READERS)


def _known() -> str:
    return f"give one of {_known_kinds()}, each also with .gz"


def _is_visible_file(file: Path, root: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)


def _renamed(row: Row, columns: dict[str, str]) -> Row:
    kept = {key: value for key, value in row.value.items() if key not in columns.values() or key in columns}
    return Row(row.file, row.line, {columns.get(key, key): value for key, value in kept.items()})
