"""Weight files written by several threads, hashed on the way.

A directory that is being written remembers its finished files in `progress.json`; the next start leaves them alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tunesmith.hardware import num_cpus
from tunesmith.merge.fold import Block, Folding, Scratch
from tunesmith.merge.plan import Operation
from tunesmith.model.headers import INDEX
from tunesmith.model.weights import Planned, header_of, plan_shards, shard_names
from tunesmith.store import files

PROGRESS = "progress.json"

_MOST_WORKERS = 8  # hashing one file is a chain: more would wait for it
_BLOCKS_AHEAD = 3  # for each worker
_WRITEBACK_BYTES = 64 << 20


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
        for tensor in tensors:
            yield from folding.blocks(operations[tensor.name])
            advance(1)

    with path.open("wb", buffering=0) as file:
        writing = _Writing(file.fileno(), header_of(tensors), blocks())
        digest = writing.run()
        os.fsync(file.fileno())
    return digest


class _Writing:
    """One file in the making.

    A worker makes a block and writes it at its place; hashing is a chain, which goes on with whichever worker brings
    the next block.
    """

    def __init__(self, descriptor: int, header: bytes, blocks: Iterator[Block]) -> None:
        self._descriptor = descriptor
        self._digest = hashlib.sha256(header)
        _write_at(descriptor, memoryview(header), 0)
        self._blocks, self._offset, self._num_begun = blocks, len(header), 0
        self._num_workers = min(num_cpus(), _MOST_WORKERS)
        num_scratches = self._num_workers * _BLOCKS_AHEAD
        self._scratches = [Scratch() for _ in range(num_scratches)]
        self._room = threading.Semaphore(num_scratches)
        self._begin_lock, self._hash_lock = threading.Lock(), threading.Lock()
        self._made: dict[int, tuple[memoryview, Scratch]] = {}
        self._num_hashed, self._is_hashing = 0, False
        self._writeback_offset, self._num_waiting = 0, len(header)
        self._failures: list[BaseException] = []
        self._is_stopping = threading.Event()

    def run(self) -> str:
        """Write everything. Returns the SHA-256.

        Raises:
            Exception: what the first block that failed raised.
        """
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self._num_workers)]
        with _one_thread_each():
            for worker in workers:
                worker.start()
            try:
                for worker in workers:
                    while worker.is_alive():
                        worker.join(0.2)  # short, so that signals come through
            finally:
                self._stop()
                for worker in workers:
                    worker.join()
        if self._failures:
            raise self._failures[0]
        return self._digest.hexdigest()

    def _stop(self) -> None:
        self._is_stopping.set()
        self._room.release(self._num_workers)

    def _work(self) -> None:
        try:
            while (begun := self._begin()) is not None:
                number, offset, block, scratch = begun
                content = block.make(scratch)
                assert len(content) == block.num_bytes
                _write_at(self._descriptor, content, offset)
                self._hash(number, content, scratch)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            self._failures.append(error)
            self._stop()

    def _begin(self) -> tuple[int, int, Block, Scratch] | None:
        """Return the next block with its number and place, or None when there is none (any more)."""
        self._room.acquire()
        with self._begin_lock:
            block = None if self._is_stopping.is_set() else next(self._blocks, None)
            if block is None:
                self._room.release()
                return None
            number, offset = self._num_begun, self._offset
            self._num_begun, self._offset = number + 1, offset + block.num_bytes
            return number, offset, block, self._scratches.pop()

    def _hash(self, number: int, content: memoryview, scratch: Scratch) -> None:
        """Hash a block and those behind it that are made, unless its turn has not come or another thread does so."""
        with self._hash_lock:
            self._made[number] = (content, scratch)
            if self._is_hashing:
                return
            self._is_hashing = True
        while True:
            with self._hash_lock:
                found = self._made.pop(self._num_hashed, None)
                if found is None:
                    self._is_hashing = False
                    return
                self._num_hashed += 1
            self._digest.update(found[0])
            self._begin_writeback(len(found[0]))
            found[1].let_go()
            self._scratches.append(found[1])
            self._room.release()

    def _begin_writeback(self, num_bytes: int) -> None:
        """Let the disk begin with what is written and hashed, so that little is left when the file is flushed."""
        self._num_waiting += num_bytes
        if self._num_waiting >= _WRITEBACK_BYTES:
            _start_writeback(self._descriptor, self._writeback_offset, self._num_waiting)
            self._writeback_offset += self._num_waiting
            self._num_waiting = 0


def _write_at(descriptor: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


def _start_writeback(descriptor: int, offset: int, num_bytes: int) -> None:
    """Tell the system to write a part of a file to the disk now, and do not wait. Does nothing but on Linux."""
    with contextlib.suppress(OSError, AttributeError):
        call = ctypes.CDLL(None).sync_file_range
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        call(descriptor, offset, num_bytes, 2)  # SYNC_FILE_RANGE_WRITE


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let every thread compute on its own: blocks are the parallel part."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
