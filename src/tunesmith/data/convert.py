"""Rows of any known format into `messages` JSONL: `tunesmith data convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Literal

from tunesmith.errors import DataError
from tunesmith.recipe.schema import RowFormat, Source
from tunesmith.rows.conversation import Conversation, Preference
from tunesmith.rows.formats import BadShape, to_conversation
from tunesmith.rows.reading import read_examples
from tunesmith.rows.sources import BadRow, source_files
from tunesmith.store import files

_SHOWN_BAD_ROWS = 3


def convert(paths: list[Path], out: Path, format: Literal["auto"] | RowFormat = "auto") -> dict[str, int]:
    """Write all rows of the inputs as one JSONL file, in order; it appears whole or not at all.

    Conversations become `messages` (+ `tools`), preference pairs `prompt_messages/chosen_messages/rejected_messages`. A
    line that is already of that form passes through unchanged. Bad rows are left out and go, with line and reason, to
    `OUT.quarantine.jsonl` beside the output.

    Returns:
        Counts: read, converted, unchanged, quarantined.

    Raises:
        DataError: an input is missing or damaged, or no row can be used.
    """
    counts = {"read": 0, "converted": 0, "unchanged": 0, "quarantined": 0}
    bad: list[BadRow] = []
    sources = [Source(str(path), format=format) for path in paths]
    for source in sources:
        if any(out.exists() and file.resolve() == out.resolve() for file in source_files(source)):
            raise DataError("the output is one of the inputs", where=str(out), do="give another name with --to")
    quarantine = out.with_name(f"{out.name}.quarantine.jsonl")
    with files.writing(out) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for source in sources:
            for path in source_files(source):
                _convert_file(Source(str(path), format=format), file, counts, bad)
        if not counts["converted"] + counts["unchanged"]:
            shown = "; ".join(f"{row.file}:{row.line}: {row.reason}" for row in bad[:_SHOWN_BAD_ROWS])
            raise DataError(f"no row can be used ({shown or 'the input is empty'})", where=str(paths[0]))
    if bad:
        lines = (json.dumps(vars(row), ensure_ascii=False) for row in bad)
        files.write_text(quarantine, "\n".join(lines) + "\n")
    else:
        quarantine.unlink(missing_ok=True)
    return counts


def _convert_file(source: Source, file: IO[str], counts: dict[str, int], bad: list[BadRow]) -> None:
    written = _Lines(Path(source.path)) if source.path.endswith((".jsonl", ".ndjson")) else None
    _, examples = read_examples(source)
    for example in examples:
        counts["read"] += 1
        if isinstance(example, BadRow):
            counts["quarantined"] += 1
            bad.append(example)
            continue
        row = example.content.to_json()
        line = written.at(example.line) if written else None
        if line is not None and _says(line, example.content):
            counts["unchanged"] += 1
            file.write(line + "\n")
        else:
            counts["converted"] += 1
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    if written:
        written.close()


def _says(line: str, content: Conversation | Preference) -> bool:
    """Return whether a line is this row in the very form that conversion would give it."""
    try:
        value = json.loads(line)
        if isinstance(content, Preference):
            return "chosen_messages" in value and to_conversation(value, "preference") == content
        return "messages" in value and to_conversation(value, "messages") == content
    except (ValueError, TypeError, BadShape):
        return False


class _Lines:
    """Lines of a file by their number, asked for in order."""

    def __init__(self, path: Path) -> None:
        self._file = path.open(encoding="utf-8-sig", errors="replace", newline="\n")
        self._lines = enumerate(self._file, 1)

    def close(self) -> None:
        self._file.close()

    def at(self, number: int) -> str | None:
        for found, line in self._lines:
            if found == number:
                return line.rstrip("\r\n")
        return None
