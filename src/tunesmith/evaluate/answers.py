"""Answers on disk, written one by one as they arrive, so that a killed evaluation asks only what is missing.

A line is `{"key": …, "answer": {…}}`. The key is a hash of everything an answer depends on: the model's weights, the
messages, the tools and the settings. Only answers are kept; a failed request is asked again next time.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from tunesmith.evaluate.client import Answer, ToolCall


class AnswerStore:
    """The answers of one model in one file.

    What a crash may lose is the line being written; a broken line is passed over when the file is read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Answer] = {}
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._known = dict(_read(self._path))
        self._file = self._path.open("a", encoding="ascii")
        if self._path.stat().st_size and not _ends_with_newline(self._path):
            self._file.write("\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def get(self, key: str) -> Answer | None:
        """Return the answer kept under a key."""
        return self._known.get(key)

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer. Flushed to the operating system before the call returns."""
        assert self._file is not None, "an AnswerStore is written inside `with`"
        assert not answer.error, "failures are not kept"
        self._known[key] = answer
        self._file.write(json.dumps({"key": key, "answer": asdict(answer)}) + "\n")
        self._file.flush()


def _read(path: Path) -> list[tuple[str, Answer]]:
    if not path.exists():
        return []
    found = []
    with path.open("rb") as file:
        for line in file:
            entry = _entry(line)
            if entry is not None:
                found.append(entry)
    return found


def _entry(line: bytes) -> tuple[str, Answer] | None:
    """Return one line's key and answer, or None for a line that a crash left broken."""
    try:
        document: dict[str, Any] = json.loads(line)
        fields = dict(document["answer"])
        fields["tool_calls"] = tuple(ToolCall(**call) for call in fields["tool_calls"])
        return str(document["key"]), Answer(**fields)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
