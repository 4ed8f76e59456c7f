"""Tokenised rows on disk: written once as a stream, then memory-mapped.

    ids.bin        uint16 or uint32, every token of every distinct row, one after the other
    trained.bin    uint8, 1 where the token has a loss
    offsets.bin    int64, N·S + 1 token positions: segment s of distinct row n lies from n·S + s to n·S + s + 1
    sequences.bin  int64, the distinct row that each sequence shows: a row that an epoch sees twice is stored once
    meta.json      counts, the number format, size and SHA-256 of each file, and what the writer's owner added

A row has one segment for supervised fine-tuning and three (prompt, chosen, rejected) for preferences.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from tunesmith.errors import DataError
from tunesmith.store import files

LAYOUT_VERSION = 1

Segment = tuple[Sequence[int] | npt.NDArray[Any], Sequence[bool] | npt.NDArray[Any]]

_FILES = ("ids.bin", "trained.bin", "offsets.bin", "sequences.bin")
_ROWS_PER_WRITE = 512
_TOKENS_PER_BLOCK = 1 << 22


class ShardWriter:
    """Write rows one by one; memory stays flat however many there are.

    The directory appears whole with `close`, or not at all. As a context manager, it is removed unless it was closed.

    Args:
        directory: what to make; an existing one is replaced by `close`.
        segments: token lists per row.
        vocab_size: ids stay below it; 65,536 or fewer are stored in two bytes each.
    """

    def __init__(self, directory: Path, segments: int, *, vocab_size: int | None = None) -> None:
        self._num_segments = segments
        self._id_dtype = np.dtype("<u2" if vocab_size is not None and vocab_size <= 1 << 16 else "<u4")
        self._stack = contextlib.ExitStack()
        self._directory = self._stack.enter_context(files.writing_directory(directory))
        self._files: dict[str, BinaryIO] = {name: (self._directory / name).open("wb") for name in _FILES}
        self._digests = {name: hashlib.sha256() for name in _FILES}
        self._num_tokens = 0
        self._num_rows = 0
        self._num_sequences = 0
        self._ids: list[Sequence[int] | npt.NDArray[Any]] = []  # not written yet, as are the next three
        self._trained: list[Sequence[bool] | npt.NDArray[Any]] = []
        self._ends: list[int] = []
        self._sequences: list[int] = []
        self._open = True
        self._put("offsets.bin", np.zeros(1, "<i8"))

    def add(self, segments: Sequence[Segment], *, repeats: int = 1) -> None:
        """Append one row; `repeats` is how many sequences of an epoch show it."""
        assert self._open, "add after close"
        assert len(segments) == self._num_segments and repeats >= 1
        for ids, trained in segments:
            assert len(ids) == len(trained), "ids and flags do not align"
            self._ids.append(ids)
            self._trained.append(trained)
            self._num_tokens += len(ids)
            self._ends.append(self._num_tokens)
        self._sequences += [self._num_rows] * repeats
        self._num_rows += 1
        self._num_sequences += repeats
        if self._num_rows % _ROWS_PER_WRITE == 0:
            self._write()

    def close(self, meta: dict[str, Any]) -> None:
        """Write `meta.json` and put the directory in its place."""
        assert self._open, "closed twice"
        self._write()
        self._open = False
        for file in self._files.values():
            file.close()
        document = {
            "layout_version": LAYOUT_VERSION,
            "num_rows": self._num_rows,
            "num_sequences": self._num_sequences,
            "num_segments": self._num_segments,
            "num_tokens": self._num_tokens,
            "id_dtype": self._id_dtype.name,
            "files": {
                name: {"num_bytes": (self._directory / name).stat().st_size, "sha256": self._digests[name].hexdigest()}
                for name in _FILES
            },
            "meta": meta,
        }
        files.write_json(self._directory / "meta.json", document)
        self._stack.close()

    def _write(self) -> None:
        if self._ids:
            self._put("ids.bin", np.concatenate([np.asarray(ids, self._id_dtype) for ids in self._ids]))
            trained = np.concatenate([np.asarray(flags, np.bool_) for flags in self._trained])
            self._put("trained.bin", trained.view(np.uint8))
        self._put("offsets.bin", np.asarray(self._ends, "<i8"))
        self._put("sequences.bin", np.asarray(self._sequences, "<i8"))
        self._ids, self._trained, self._ends, self._sequences = [], [], [], []

    def _put(self, name: str, values: npt.NDArray[Any]) -> None:
        content = values.data.cast("B") if values.size else b""
        self._digests[name].update(content)
        self._files[name].write(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._open:
            return
        self._open = False
        for file in self._files.values():
            file.close()
        abandoned = error or _Abandoned("closed without meta")
        with contextlib.suppress(_Abandoned):
            self._stack.__exit__(type(abandoned), abandoned, trace)


class _Abandoned(Exception):
    """Makes the directory go away without an error of its own."""


class Shards:
    """Rows of a shard directory, by index; nothing is read before it is asked for.

    Raises:
        DataError: the directory is missing, or its files do not fit its `meta.json`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        document = _read_meta(self.directory)
        self.meta: dict[str, Any] = document["meta"]
        self.num_segments: int = document["num_segments"]
        self.num_rows: int = document["num_rows"]
        self.num_tokens: int = document["num_tokens"]  # of the distinct rows
        self._sha256 = {name: entry["sha256"] for name, entry in document["files"].items()}
        self._ids = self._map("ids.bin", np.dtype(document["id_dtype"]), self.num_tokens)
        self._trained = self._map("trained.bin", np.dtype(np.uint8), self.num_tokens)
        self._offsets = self._map("offsets.bin", np.dtype("<i8"), self.num_rows * self.num_segments + 1)
        self._sequences = self._map("sequences.bin", np.dtype("<i8"), document["num_sequences"])
        self._check_index()

    def __len__(self) -> int:
        """Return the number of sequences of one epoch."""
        return len(self._sequences)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each segment of each sequence, (N, S)."""
        distinct = np.diff(self._offsets).reshape(self.num_rows, self.num_segments)
        return np.asarray(distinct[np.asarray(self._sequences)], dtype=np.int64)

    @property
    def num_trained(self) -> npt.NDArray[np.int64]:
        """Tokens with a loss in each segment of each sequence, (N, S)."""
        # The running sum is kept at the borders only: for every token it would need eight times the flags' memory.
        total = np.zeros(len(self._offsets), np.int64)
        before = 0
        for begin in range(0, self.num_tokens, _TOKENS_PER_BLOCK):
            sums = before + np.cumsum(self._trained[begin : begin + _TOKENS_PER_BLOCK], dtype=np.int64)
            first, last = np.searchsorted(self._offsets, (begin + 1, begin + len(sums) + 1))
            total[first:last] = sums[self._offsets[first:last] - begin - 1]
            before = int(sums[-1])
        distinct = np.diff(total).reshape(self.num_rows, self.num_segments)
        return np.asarray(distinct[np.asarray(self._sequences)], dtype=np.int64)

    def segment(self, row: int, s: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """Return the ids and the flags of one segment of one sequence, (T,) each."""
        if not 0 <= s < self.num_segments:
            raise IndexError(f"segment {s} of {self.num_segments}")
        if not -len(self) <= row < len(self):
            raise IndexError(f"sequence {row} of {len(self)}")
        index = int(self._sequences[row]) * self.num_segments + s
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        return self._ids[start:end].astype(np.uint32, copy=False), self._trained[start:end].view(np.bool_)

    def verify(self, cache: files.HashCache | None = None) -> None:
        """Compare every file with its SHA-256.

        Args:
            cache: remembers the sums of files that have not changed since.

        Raises:
            DataError: a file is damaged.
        """
        for name, expected in self._sha256.items():
            path = self.directory / name
            if (cache.sha256(path) if cache else files.sha256(path)) != expected:
                raise _damaged(path, "its content is not what was written")

    def _map(self, name: str, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
        path = self.directory / name
        expected = count * dtype.itemsize
        try:
            found = path.stat().st_size
        except OSError:
            raise _damaged(path, "the file is missing") from None
        if found != expected:
            raise _damaged(path, f"it has {found} bytes and should have {expected}")
        # An empty file cannot be mapped.
        return np.memmap(path, dtype, "r", shape=(count,)).view(np.ndarray) if count else np.empty(0, dtype)

    def _check_index(self) -> None:
        offsets, sequences = self._offsets, self._sequences
        if offsets[0] != 0 or offsets[-1] != self.num_tokens or bool((np.diff(offsets) < 0).any()):
            raise _damaged(self.directory / "offsets.bin", "its positions do not fit the tokens")
        if len(sequences) and (sequences.min() < 0 or sequences.max() >= self.num_rows):
            raise _damaged(self.directory / "sequences.bin", "it names rows that do not exist")


def _read_meta(directory: Path) -> dict[str, Any]:
    path = directory / "meta.json"
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            "there are no tokenised rows here", where=str(directory), do="run the data stage again"
        ) from None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    counts = ("num_rows", "num_sequences", "num_segments", "num_tokens")
    if not isinstance(document, dict) or document.get("layout_version") != LAYOUT_VERSION:
        raise _damaged(path, f"it is not of layout version {LAYOUT_VERSION}")
    numbers = [document.get(name) for name in counts]
    listed = document.get("files")
    if not all(isinstance(n, int) and n >= 0 for n in numbers) or document.get("id_dtype") not in ("uint16", "uint32"):
        raise _damaged(path, "counts or number format are missing")
    if not isinstance(listed, dict) or set(listed) != set(_FILES) or not isinstance(document.get("meta"), dict):
        raise _damaged(path, "the list of files is incomplete")
    return document


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"tokenised rows are damaged: {reason}", where=str(path), do="remove the directory and run again")
