"""The merged values of one tensor, block of rows by block of rows: folded in float32, rounded once."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.merge.plan import Operation
from tunesmith.model.adapter_mix import Mix
from tunesmith.model.adapters import Change, fold_into
from tunesmith.model.headers import TensorInfo
from tunesmith.model.load import DTYPES
from tunesmith.model.nf4 import round_trip
from tunesmith.model.scratch import Scratch
from tunesmith.model.weights import TORCH_DTYPES, read_into

# Read, folded, rounded and hashed while they lie in the processor's cache: 4 MiB of float32.
BLOCK_ELEMENTS = 1 << 20
_FEWEST_ROWS = 16
_MADV_POPULATE_READ = 22  # Linux 5.14; Python's mmap has no name for it


@dataclass(frozen=True)
class Block:
    """Some of a file: its number of bytes, and what fills a flat uint8 tensor with them, called once, by any thread."""

    num_bytes: int
    make: Callable[[Scratch, Tensor], None]


class MappedFiles:
    """Files that are read as memory. A page that has been used leaves the process at once."""

    def __init__(self) -> None:
        self._open: dict[Path, tuple[int, mmap.mmap]] = {}
        self._lock = threading.Lock()
        self._can_populate = True

    @contextlib.contextmanager
    def read(self, source: TensorInfo, begin: int, end: int, scratch: Scratch) -> Iterator[Tensor]:
        """Give bytes [begin, end) of a tensor; the file's own pages, which are let go of behind.

        Raises:
            ModelError: they cannot be read.
        """
        if end == begin:
            yield torch.empty(0, dtype=torch.uint8)
            return
        descriptor, mapped = self._of(source.file)
        first = (source.start + begin) // mmap.PAGESIZE * mmap.PAGESIZE
        length = source.start + end - first
        if self._can_populate:
            try:
                # Before they are touched: a page that cannot be read is then an error, and not the end of the process.
                mapped.madvise(_MADV_POPULATE_READ, first, length)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    do = "copy the checkpoint again"
                    raise ModelError("the file is cut short or cannot be read", where=str(source.file), do=do) from None
                self._can_populate = False
        if not self._can_populate:  # kernels before 5.14
            content = scratch.take("read", end - begin, torch.uint8)
            read_into(descriptor, memoryview(content.numpy()), source.start + begin, source.file)
            yield content
            return
        yield torch.frombuffer(mapped, dtype=torch.uint8, count=end - begin, offset=source.start + begin)
        mapped.madvise(mmap.MADV_DONTNEED, first, length)

    def _of(self, path: Path) -> tuple[int, mmap.mmap]:
        with self._lock:
            if path not in self._open:
                descriptor = os.open(path, os.O_RDONLY)
                # Copy on write, and never written: PyTorch warns of memory that cannot be.
                self._open[path] = descriptor, mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
            return self._open[path]

    def __enter__(self) -> MappedFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor, _mapped in self._open.values():
            os.close(descriptor)
        self._open.clear()  # maps end with the last tensor that looks at them


@dataclass
class Folding:
    """Makes blocks out of operations.

    Args:
        quantised_from: number format that NF4 was made from in training.
        inputs: files to read from.
    """

    mix: Mix | None
    quantised_from: str
    inputs: MappedFiles

    def blocks(self, operation: Operation) -> Iterator[Block]:
        """Yield the tensor's bytes in order. None is read before a block is made."""
        planned, source = operation.planned, operation.source
        if operation.is_copy:
            step = 4 * BLOCK_ELEMENTS
            for begin in range(0, planned.num_bytes, step):
                end = min(begin + step, planned.num_bytes)
                yield Block(end - begin, partial(self._copy, operation, begin, end))
            return
        num_rows, num_columns = (source.shape[0], prod(source.shape[1:])) if source.shape else (1, 1)
        row_bytes = planned.num_bytes // max(1, num_rows)
        make: Callable[[slice, Scratch, Tensor], None]
        if operation.is_quantised or _norms_are_columns(operation):
            make = partial(self._rows_of_whole, operation, _ReadOnce(partial(self._whole, operation)))
        else:
            make = partial(self._rows, operation, _ReadOnce(partial(self._change, operation)))
        for rows in _row_blocks(num_rows, num_columns):
            yield Block((rows.stop - rows.start) * row_bytes, partial(make, rows))

    def _change(self, operation: Operation) -> Change | None:
        if not operation.shares or self.mix is None:
            return None
        change = self.mix.change(operation.shares)
        if not operation.is_transposed or change.magnitude is not None:
            return change
        return change.turned()

    def _copy(self, operation: Operation, begin: int, end: int, scratch: Scratch, target: Tensor) -> None:
        with self.inputs.read(operation.source, begin, end, scratch) as content:
            target.copy_(content)

    def _rows(
        self, operation: Operation, change: _ReadOnce[Change | None], rows: slice, scratch: Scratch, target: Tensor
    ) -> None:
        """Fold some rows, and cast them."""
        source, dtype = operation.source, TORCH_DTYPES[operation.source.dtype]
        num_columns = prod(source.shape[1:])
        row_bytes = num_columns * dtype.itemsize
        found = change()
        with self.inputs.read(source, rows.start * row_bytes, rows.stop * row_bytes, scratch) as content:
            read = content.view(dtype)
            wide = scratch.take("wide", read.numel(), torch.float32).copy_(read).view(-1, num_columns)
        if found is not None:
            fold_into(wide, found.of_rows(rows), as_peft=_is_exact(operation))
        _cast(wide, operation, target)

    def _rows_of_whole(
        self, operation: Operation, whole: _ReadOnce[Tensor], rows: slice, _: Scratch, target: Tensor
    ) -> None:
        _cast(whole()[rows], operation, target)

    def _whole(self, operation: Operation) -> Tensor:
        """Return a folded tensor that is needed as a whole: taken through NF4, or with norms of its stored columns."""
        source = operation.source
        with self.inputs.read(source, 0, source.end - source.start, Scratch()) as content:
            weight = content.view(TORCH_DTYPES[source.dtype]).view(source.shape)
            if operation.is_quantised:
                weight = round_trip(weight.to(DTYPES[self.quantised_from]))
            wide = weight.to(torch.float32, copy=True)
        change = self._change(operation)
        if change is not None:
            turned = wide.T if _norms_are_columns(operation) else wide
            fold_into(turned, change, as_peft=_is_exact(operation))
        return wide


def _cast(wide: Tensor, operation: Operation, target: Tensor) -> None:
    target.view(TORCH_DTYPES[operation.planned.dtype]).view(wide.shape).copy_(wide)


def _is_exact(operation: Operation) -> bool:
    return operation.planned.dtype in ("F32", "F64")


def _norms_are_columns(operation: Operation) -> bool:
    """Return whether DoRA's norms run over what is stored as columns."""
    return operation.is_transposed and any("magnitude" in share.layer.parts for share in operation.shares)


_T = TypeVar("_T")


class _ReadOnce(Generic[_T]):
    """Reads what a tensor's blocks share when the first one needs it, and lets go of it with the last."""

    def __init__(self, read: Callable[[], _T]) -> None:
        self._read, self._lock = read, threading.Lock()
        self._known: tuple[_T] | None = None

    def __call__(self) -> _T:
        with self._lock:
            if self._known is None:
                self._known = (self._read(),)
            return self._known[0]


def _row_blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Yield rows in blocks of about equal size, none of a few rows only: BLAS multiplies those in another order."""
    count = max(1, num_rows * num_columns // BLOCK_ELEMENTS)
    step = -(-num_rows // count // _FEWEST_ROWS) * _FEWEST_ROWS or _FEWEST_ROWS
    begin = 0
    while begin < num_rows:
        end = begin + step if num_rows - begin - step >= _FEWEST_ROWS else num_rows
        yield slice(begin, end)
        begin = end
