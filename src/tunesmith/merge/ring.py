"""Memory through which a file goes to the disk: filled in any order, written in order, in large pieces.

The pieces go past the page cache where the file system allows it. Copying into that cache costs as much as half of the
products of a merge, and the flush at the end waits for the disk all the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
from pathlib import Path

from torch import Tensor

from tunesmith.model.scratch import anonymous

_PIECE_BYTES = 8 << 20
_NUM_PIECES = 8  # as much as the disk may fall behind for a moment
_PAGE_BYTES = mmap.PAGESIZE  # direct writes begin and end at pages, in the file and in memory
_WRITEBACK_BYTES = 64 << 20
_DIRECT = getattr(os, "O_DIRECT", 0)


class Ring:
    """Memory for a part of a file: a byte's place is its offset in the file, modulo the size."""

    def __init__(self, largest_bytes: int, *, piece_bytes: int = _PIECE_BYTES) -> None:
        """Take memory.

        Args:
            largest_bytes: what must fit beside a piece that is being written.
            piece_bytes: what is written at a time; whole pages.
        """
        self.piece_bytes = piece_bytes
        self.num_bytes = piece_bytes * max(_NUM_PIECES, -(-largest_bytes // piece_bytes) + 2)
        self._bytes = anonymous(self.num_bytes)

    def whole(self, begin: int, end: int) -> Tensor | None:
        """Return the place of bytes [begin, end), or None where it is in two parts or no place for numbers."""
        first = begin % self.num_bytes
        if begin % 8 or first + end - begin > self.num_bytes:
            return None
        return self._bytes[first : first + end - begin]

    def fill(self, begin: int, content: Tensor) -> None:
        """Copy bytes to their place."""
        first = begin % self.num_bytes
        behind = self._bytes[first : first + len(content)]
        behind.copy_(content[: len(behind)])
        self._bytes[: len(content) - len(behind)].copy_(content[len(behind) :])

    def views(self, begin: int, end: int) -> list[memoryview]:
        """Return bytes [begin, end), in one or two parts."""
        first, view = begin % self.num_bytes, memoryview(self._bytes.numpy())
        last = first + end - begin
        return [view[first:last]] if last <= self.num_bytes else [view[first:], view[: last - self.num_bytes]]


class Output:
    """A file that is written from its beginning to its end, past the page cache where that is possible."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._is_direct = bool(_DIRECT)
        try:
            self._descriptor = os.open(path, flags | _DIRECT, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._is_direct, self._descriptor = False, os.open(path, flags, 0o666)
        self._num_written = self._num_begun_writeback = 0

    def write(self, content: memoryview) -> None:
        """Write the next bytes, from memory that begins at a page; all but the last are whole pages."""
        while content:
            try:
                count = os.pwrite(self._descriptor, content, self._num_written)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._is_direct:
                    raise
                self._go_through_cache()
                continue
            content, self._num_written = content[count:], self._num_written + count
        if not self._is_direct:
            self._begin_writeback()

    def end(self, content: memoryview) -> None:
        """Write the last bytes, and come back when everything is on the disk."""
        whole = len(content) // _PAGE_BYTES * _PAGE_BYTES
        self.write(content[:whole])
        self._go_through_cache()
        self.write(content[whole:])
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def _go_through_cache(self) -> None:
        if self._is_direct:
            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~_DIRECT)
        self._is_direct = False

    def _begin_writeback(self) -> None:
        """Tell the system to write to the disk what is in the cache, so that little is left for the end."""
        waiting = self._num_written - self._num_begun_writeback
        if waiting >= _WRITEBACK_BYTES:
            _start_writeback(self._descriptor, self._num_begun_writeback, waiting)
            self._num_begun_writeback += waiting


def _start_writeback(descriptor: int, offset: int, num_bytes: int) -> None:
    """Tell the system to write a part of a file to the disk now, and do not wait. Does nothing but on Linux."""
    with contextlib.suppress(OSError, AttributeError):
        call = ctypes.CDLL(None).sync_file_range
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        call(descriptor, offset, num_bytes, 2)  # SYNC_FILE_RANGE_WRITE
