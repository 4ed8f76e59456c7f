"""Answers on disk, written one by one as they arrive, so that a killed evaluation asks only what is missing.

A line is `{"key": …, "answer": {…}}`. The key is a hash of everything an answer depends on: the model's weights, the
messages, the tools and the settings. Only answers are kept; a failed request is asked again next time.

A base model is the same in many runs: its answers are also kept in a file that runs share, and found there by the next.
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

    What a crash may lose is the line being written; a broken line is passed over when the file is read. Several
    processes may write to the shared file: the worst that can happen is a broken line.

    Args:
        path: the file.
        shared: one more file to look into and to write to; what is found there is copied into the first.
    """

    def __init__(self, path: Path, shared: Path | None = None) -> None:
        self._paths = [path] if shared is None else [path, shared]
        self._known: dict[str, Answer] = {}
        self._elsewhere: dict[str, Answer] = {}
        self._files: list[TextIO] = []

    def __enter__(self) -> Self:
        own, *shared = self._paths
        self._known = dict(_read(own))
        self._elsewhere = {key: answer for path in shared for key, answer in _read(path)}
        self._files = [_append_to(path) for path in self._paths]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()
        self._files = []

    def get(self, key: str) -> Answer | None:
        """Return the answer kept under a key."""
        if key not in self._known and key in self._elsewhere:
            self._write(key, self._elsewhere[key], self._files[:1])
        return self._known.get(key)

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer. Flushed to the operating system before the call returns."""
        self._write(key, answer, self._files)

    def _write(self, key: str, answer: Answer, files: list[TextIO]) -> None:
        assert self._files, "an AnswerStore is used inside `with`"
        assert not answer.error, "failures are not kept"
        self._known[key] = answer
        line = json.dumps({"key": key, "answer": asdict(answer)}) + "\n"
        for file in files:
            file.write(line)
            file.flush()


def _append_to(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a", encoding="ascii")
    if path.stat().st_size and not _ends_with_newline(path):
        file.write("\n")
        file.flush()
    return file


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
