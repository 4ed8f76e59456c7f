"""Weight files written by several threads, hashed on the way.

A directory that is being written remembers its finished files in `progress.json`; the next start leaves them alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.hardware import num_cpus
from tunesmith.merge.fold import Block, Folding
from tunesmith.merge.plan import Operation
from tunesmith.merge.ring import Output, Ring
from tunesmith.model.headers import INDEX
from tunesmith.model.scratch import Scratch
from tunesmith.model.weights import Planned, header_of, plan_shards, shard_names
from tunesmith.store import files

PROGRESS = "progress.json"

_MOST_WORKERS = 8  # hashing one file is a chain: more would wait for it


def write_weights(
    directory: Path,
    operations: dict[str, Operation],
    folding: Folding,
    *,
    max_shard_bytes: int,
    advance: Callable[[int], None],
) -> dict[str, str]:
    """Write a checkpoint's weight files, and the index of several, into a directory; finished ones stay.

    Args:
        advance: called with the number of tensors that are written.

    Returns:
        The SHA-256 of each file by name.

    Raises:
        ModelError: a file that is read ends too soon.
        MergeError: adapter and base do not fit.
    """
    shards = plan_shards((o.planned for o in operations.values()), max_shard_bytes)
    names = shard_names(len(shards))
    known = _finished(directory, names)
    digests: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        if name in known:
            digests[name] = known[name]
            advance(len(shard))
            continue
        digests[name] = _write_file(directory / name, shard, operations, folding, advance)
        files.write_json(directory / PROGRESS, {"files": digests})
    if len(shards) > 1:
        total = sum(tensor.num_bytes for shard in shards for tensor in shard)
        weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        files.write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        digests[INDEX] = files.sha256(directory / INDEX)
    return digests


def _finished(directory: Path, names: list[str]) -> dict[str, str]:
    """Return the files that an earlier start finished and that are as it left them."""
    try:
        noted: dict[str, str] = json.loads((directory / PROGRESS).read_text())["files"]
        return {n: noted[n] for n in names if n in noted and files.sha256(directory / n) == noted[n]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_file(
    path: Path,
    tensors: list[Planned],
    operations: dict[str, Operation],
    folding: Folding,
    advance: Callable[[int], None],
) -> str:
    def blocks() -> Iterator[Block]:
        yield _constant(header_of(tensors))
        for tensor in tensors:
            yield from folding.blocks(operations[tensor.name])
            advance(1)

    sizes = (block.num_bytes for tensor in tensors for block in folding.blocks(operations[tensor.name]))
    output = Output(path)
    try:
        return _Writing(output, blocks(), Ring(max(sizes, default=0))).run()
    finally:
        output.close()


def _constant(content: bytes) -> Block:
    def fill(_: Scratch, target: Tensor) -> None:
        target.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))

    return Block(len(content), fill)


class _Writing:
    """One file in the making.

    Workers make blocks, each in its place in a ring of memory. Hashing is a chain, which goes on with whichever worker
    brings the next block. One more thread, which mostly waits for the disk, writes what is hashed.
    """

    def __init__(self, output: Output, blocks: Iterator[Block], ring: Ring) -> None:
        self._output, self._blocks, self._ring = output, blocks, ring
        self._digest = hashlib.sha256()
        self._made: dict[int, int] = {}  # ends of blocks by their beginnings, until they are hashed
        self._num_begun = self._num_hashed = self._num_written = 0  # bytes
        self._is_hashing = self._are_all_begun = self._is_stopping = False
        self._failures: list[BaseException] = []
        self._changed = threading.Condition()

    def run(self) -> str:
        """Write everything. Returns the SHA-256.

        Raises:
            Exception: what the first block that failed raised.
        """
        work = [self._make] * min(num_cpus(), _MOST_WORKERS)
        threads = [threading.Thread(target=self._attempt, args=(part,), daemon=True) for part in (*work, self._write)]
        with _one_thread_each():
            for thread in threads:
                thread.start()
            try:
                for thread in threads:
                    while thread.is_alive():
                        thread.join(0.2)  # short, so that signals come through
            finally:
                self._stop()
                for thread in threads:
                    thread.join()
        if self._failures:
            raise self._failures[0]
        return self._digest.hexdigest()

    def _attempt(self, part: Callable[[], None]) -> None:
        try:
            part()
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            self._failures.append(error)
            self._stop()

    def _stop(self) -> None:
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()

    def _make(self) -> None:
        scratch = Scratch()
        while (begun := self._begin()) is not None:
            begin, block = begun
            end = begin + block.num_bytes
            place = self._ring.whole(begin, end)
            if place is not None:
                block.make(scratch, place)
            else:
                apart = scratch.take("apart", block.num_bytes, torch.uint8)
                block.make(scratch, apart)
                self._ring.fill(begin, apart)
            del block  # what the tensor's blocks share is let go of with the last one
            self._hash(begin, end)

    def _begin(self) -> tuple[int, Block] | None:
        """Return the next block and its offset in the file when there is room for it; None when there is no more."""
        with self._changed:
            block = None if self._is_stopping else next((b for b in self._blocks if b.num_bytes), None)
            if block is None:
                self._are_all_begun = True
                self._changed.notify_all()
                return None
            begin = self._num_begun
            self._num_begun = end = begin + block.num_bytes
            while end - self._num_written > self._ring.num_bytes and not self._is_stopping:
                self._changed.wait()
            return None if self._is_stopping else (begin, block)

    def _hash(self, begin: int, end: int) -> None:
        """Hash a block and those behind it that are made, unless its turn has not come or another thread does so."""
        with self._changed:
            self._made[begin] = end
            if self._is_hashing:
                return
            self._is_hashing = True
        while True:
            with self._changed:
                begin = self._num_hashed
                found = self._made.pop(begin, None)
                if found is None:
                    self._is_hashing = False
                    return
            for view in self._ring.views(begin, found):
                self._digest.update(view)
            with self._changed:
                self._num_hashed = found
                self._changed.notify_all()

    def _write(self) -> None:
        """Write pieces as they are hashed, and the rest at the end."""
        piece_bytes = self._ring.piece_bytes
        while True:
            with self._changed:
                while not (self._is_stopping or self._is_complete() or self._num_waiting() >= piece_bytes):
                    self._changed.wait()
                if self._is_stopping:
                    return
                begin, num_bytes = self._num_written, self._num_waiting()
            if num_bytes < piece_bytes:
                break
            (piece,) = self._ring.views(begin, begin + piece_bytes)
            self._output.write(piece)
            with self._changed:
                self._num_written += piece_bytes
                self._changed.notify_all()
        (rest,) = self._ring.views(begin, begin + num_bytes)
        self._output.end(rest)

    def _is_complete(self) -> bool:
        return self._are_all_begun and self._num_hashed == self._num_begun

    def _num_waiting(self) -> int:
        return self._num_hashed - self._num_written


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let every thread compute on its own: blocks are the parallel part."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
