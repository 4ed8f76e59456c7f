"""Batches of rows encoded here and, when there are many, in processes beside this one.

Rendering a template is Python, and one process has one core for Python. A worker is told the encoder once, then gets
batches and answers with tokens; what it cannot encode, and what it held when it died, is encoded here. Batches leave
in the order they came in, whoever encoded them.

This module is also what a worker runs: `python -m tunesmith.data.workers`, pickles over its standard streams.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import numpy as np

from tunesmith.data.encoding import RowEncoder
from tunesmith.data.tokenising import Encoder
from tunesmith.errors import DataError
from tunesmith.process import die_with_parent
from tunesmith.rows.conversation import Conversation, Preference
from tunesmith.tokens.bulk import ArraySegment

Batch = TypeVar("Batch")
Contents = Sequence[Conversation | Preference]
Encoded = list[list[ArraySegment] | str]  # per row: its segments, or why it has none
_Packed = tuple[list[list[int] | str], bytes, bytes]  # lengths of segments or the reason; all ids; all flags

_BATCHES_ALONE = 4  # fewer are done before a worker has started
_MOST_WORKERS = 6  # they keep up with what one process can read
_WAITING_BATCHES = 2  # per worker: one at work, one that follows at once


class Workers:
    """Encodes batches in order. A context manager: it ends its processes.

    Args:
        num_processes: how many may work at the same time, this one included.
    """

    def __init__(self, encoder: Encoder, num_processes: int) -> None:
        self._encoder = encoder
        self._rows = RowEncoder(encoder)
        self._num_workers = min(num_processes - 1, _MOST_WORKERS)
        self._num_batches = 0
        self._stack = contextlib.ExitStack()
        self._threads: ThreadPoolExecutor | None = None
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._given: list[Future[_Packed | None]] = []

    def encoded(
        self, batches: Iterable[Batch], contents_of: Callable[[Batch], Contents]
    ) -> Iterator[tuple[Batch, Encoded]]:
        """Yield each batch with its tokens.

        Raises:
            DataError: as `Encoder.encode`, when it is that batch's turn.
        """
        pending: deque[tuple[Batch, Future[_Packed | None] | Encoded]] = deque()
        for batch in batches:
            given = self._give(contents_of(batch))
            if given is None and not pending:
                yield batch, self._rows.encode(contents_of(batch))
                continue
            pending.append((batch, given if given is not None else self._here(contents_of(batch))))
            most = 2 * _WAITING_BATCHES * self._num_workers
            while pending and (len(pending) > most or _is_ready(pending[0][1])):
                yield self._finished(*pending.popleft(), contents_of)
        while pending:
            yield self._finished(*pending.popleft(), contents_of)

    def _give(self, contents: Contents) -> Future[_Packed | None] | None:
        """Give a batch to a worker; None when there is none or all have enough to do."""
        self._num_batches += 1
        if self._num_workers < 1 or self._num_batches <= _BATCHES_ALONE:
            return None
        if self._threads is None:
            self._threads = self._start()
        self._given = [future for future in self._given if not future.done()]
        if len(self._given) >= _WAITING_BATCHES * self._num_workers:
            return None
        self._given.append(self._threads.submit(self._there, contents))
        return self._given[-1]

    def _start(self) -> ThreadPoolExecutor:
        setup = pickle.dumps(self._encoder)
        threads = ThreadPoolExecutor(self._num_workers)
        self._stack.callback(threads.shutdown, wait=True, cancel_futures=True)
        for _ in range(self._num_workers):  # ended before the threads, which may wait for an answer
            self._idle.put(self._stack.enter_context(_Worker(setup)))
        return threads

    def _there(self, contents: Contents) -> _Packed | None:
        worker = self._idle.get()
        try:
            return worker.encode(contents)
        finally:
            self._idle.put(worker)

    def _here(self, contents: Contents) -> Encoded | Future[_Packed | None]:
        try:
            return self._rows.encode(contents)
        except DataError:
            failed: Future[_Packed | None] = Future()
            failed.set_result(None)  # raised again when it is its turn
            return failed

    def _finished(
        self, batch: Batch, given: Future[_Packed | None] | Encoded, contents_of: Callable[[Batch], Contents]
    ) -> tuple[Batch, Encoded]:
        if isinstance(given, list):
            return batch, given
        packed = given.result()
        return batch, self._rows.encode(contents_of(batch)) if packed is None else _unpacked(packed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class _Worker:
    """One process. It ends when this one does, or its standard input."""

    def __init__(self, setup: bytes) -> None:
        self._setup: bytes | None = setup
        environment = os.environ | {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tunesmith.data.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # a signal from the keyboard is for the pipeline
            preexec_fn=die_with_parent,
        )

    def encode(self, contents: Contents) -> _Packed | None:
        """Return a batch's tokens, or None when the worker cannot encode it or is no more."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            if self._setup is not None:
                process.stdin.write(self._setup)
                self._setup = None
            pickle.dump(contents, process.stdin, pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            packed: _Packed | None = pickle.load(process.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            return None
        return packed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # it holds nothing that anybody waits for
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                stream.close() if stream is not None else None
        self._process.wait()


def _is_ready(given: Future[_Packed | None] | Encoded) -> bool:
    return isinstance(given, list) or given.done()


def _packed(encoded: Encoded) -> _Packed:
    lengths = [row if isinstance(row, str) else [len(ids) for ids, _ in row] for row in encoded]
    segments = [segment for row in encoded if not isinstance(row, str) for segment in row]
    return (
        lengths,
        b"".join([ids.tobytes() for ids, _ in segments]),
        b"".join([flags.tobytes() for _, flags in segments]),
    )


def _unpacked(packed: _Packed) -> Encoded:
    lengths, ids_bytes, flags_bytes = packed
    ids, flags = np.frombuffer(ids_bytes, np.uint32), np.frombuffer(flags_bytes, np.bool_)
    encoded: Encoded = []
    begin = 0
    for row in lengths:
        if isinstance(row, str):
            encoded.append(row)
            continue
        segments: list[ArraySegment] = []
        for length in row:
            segments.append((ids[begin : begin + length], flags[begin : begin + length]))
            begin += length
        encoded.append(segments)
    return encoded


def _work(given: IO[bytes], answers: IO[bytes]) -> None:
    rows = RowEncoder(pickle.load(given))
    while True:
        try:
            contents: Any = pickle.load(given)
        except EOFError:
            return
        try:
            packed: _Packed | None = _packed(rows.encode(contents))
        except DataError:
            packed = None  # the error is made, and its turn is known, where the rows came from
        pickle.dump(packed, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


def main() -> None:
    """Work until there is no more input."""
    # Whatever prints must not get among the answers.
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        _work(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
