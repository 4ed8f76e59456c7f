"""The merged values of one tensor, block of rows by block of rows: folded in float32, rounded once."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.merge.plan import Operation
from tunesmith.model.adapter_mix import Mix
from tunesmith.model.adapters import Change, fold_into
from tunesmith.model.headers import TensorInfo
from tunesmith.model.load import DTYPES
from tunesmith.model.nf4 import round_trip
from tunesmith.model.weights import TORCH_DTYPES, read_into

# Read, folded, hashed and written while they lie in the processor's cache: 4 MiB of float32.
BLOCK_ELEMENTS = 1 << 20
_FEWEST_ROWS = 16
_MADV_POPULATE_READ = 22  # Linux 5.14; Python's mmap has no name for it


class Scratch:
    """The memory of one block in the making, used again for others, and what is to be let go of with it."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._held: list[Callable[[], None]] = []

    def take(self, name: str, num_elements: int, dtype: torch.dtype) -> Tensor:
        """Return a flat tensor; what it held before is lost. Large ones are not kept."""
        num_bytes = num_elements * dtype.itemsize
        if num_bytes > 32 * BLOCK_ELEMENTS:
            return torch.empty(num_elements, dtype=dtype)
        if name not in self._kept or self._kept[name].numel() < num_bytes:
            self._kept[name] = torch.empty(num_bytes, dtype=torch.uint8)
        return self._kept[name][:num_bytes].view(dtype)

    def hold(self, release: Callable[[], None]) -> None:
        """Remember what is to be called when the block is written."""
        self._held.append(release)

    def let_go(self) -> None:
        while self._held:
            self._held.pop()()


@dataclass(frozen=True)
class Block:
    """Some of a file's bytes: their number, and what makes them. `make` is called once, by any thread."""

    num_bytes: int
    make: Callable[[Scratch], memoryview]


class MappedFiles:
    """Files that are read as memory. A page that has been used leaves the process at once."""

    def __init__(self) -> None:
        self._open: dict[Path, tuple[int, mmap.mmap]] = {}
        self._lock = threading.Lock()
        self._can_populate = True

    def read(self, source: TensorInfo, begin: int, end: int, scratch: Scratch) -> Tensor:
        """Return bytes [begin, end) of a tensor; the file's own pages until the scratch lets go of them.

        Raises:
            ModelError: they cannot be read.
        """
        if end == begin:
            return torch.empty(0, dtype=torch.uint8)
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
            return content
        scratch.hold(partial(mapped.madvise, mmap.MADV_DONTNEED, first, length))
        return torch.frombuffer(mapped, dtype=torch.uint8, count=end - begin, offset=source.start + begin)

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
    # Tensors that must be whole in memory are taken one at a time, whatever the number of workers.
    _wide: threading.Lock = field(default_factory=threading.Lock)

    def blocks(self, operation: Operation) -> Iterator[Block]:
        """Yield the tensor's bytes in order."""
        planned, source = operation.planned, operation.source
        if operation.is_copy:
            step = 4 * BLOCK_ELEMENTS
            for begin in range(0, planned.num_bytes, step):
                end = min(begin + step, planned.num_bytes)
                yield Block(end - begin, partial(self._copy, operation, begin, end))
        elif operation.is_quantised or _norms_are_columns(operation) or not source.shape:
            yield Block(planned.num_bytes, partial(self._whole, operation))
        else:
            read_change = _ReadOnce(partial(self._change, operation))
            row_bytes = planned.num_bytes // max(1, source.shape[0])
            for rows in _row_blocks(source.shape):
                num_bytes = (rows.stop - rows.start) * row_bytes
                yield Block(num_bytes, partial(self._rows, operation, read_change, rows))

    def _change(self, operation: Operation) -> Change | None:
        if not operation.shares or self.mix is None:
            return None
        change = self.mix.change(operation.shares)
        if not operation.is_transposed or change.magnitude is not None:
            return change
        return change.turned()

    def _copy(self, operation: Operation, begin: int, end: int, scratch: Scratch) -> memoryview:
        return _bytes(self.inputs.read(operation.source, begin, end, scratch))

    def _rows(self, operation: Operation, read_change: _ReadOnce, rows: slice, scratch: Scratch) -> memoryview:
        """Return some rows, folded and cast."""
        source, num_columns, change = operation.source, prod(operation.source.shape[1:]), read_change()
        dtype = TORCH_DTYPES[source.dtype]
        row_bytes = num_columns * dtype.itemsize
        read = self.inputs.read(source, rows.start * row_bytes, rows.stop * row_bytes, scratch).view(dtype)
        wide = scratch.take("wide", read.numel(), torch.float32).copy_(read).view(-1, num_columns)
        scratch.let_go()
        if change is not None:
            fold_into(wide, change.of_rows(rows), as_peft=_is_exact(operation))
        return self._cast(operation, wide, scratch)

    def _whole(self, operation: Operation, scratch: Scratch) -> memoryview:
        """Return a tensor that is needed as a whole: taken through NF4, or with norms of its stored columns."""
        source = operation.source
        with self._wide:
            content = self.inputs.read(source, 0, source.end - source.start, scratch)
            weight = content.view(TORCH_DTYPES[source.dtype]).view(source.shape)
            if operation.is_quantised:
                weight = round_trip(weight.to(DTYPES[self.quantised_from]))
            wide = weight.to(torch.float32, copy=True)
            scratch.let_go()
            change = self._change(operation)
            if change is not None:
                turned = wide.T if _norms_are_columns(operation) else wide
                fold_into(turned, change, as_peft=_is_exact(operation))
            return self._cast(operation, wide, scratch)

    def _cast(self, operation: Operation, wide: Tensor, scratch: Scratch) -> memoryview:
        target = TORCH_DTYPES[operation.planned.dtype]
        if target == torch.float32:
            return _bytes(wide)
        return _bytes(scratch.take("cast", wide.numel(), target).view(wide.shape).copy_(wide))


def _is_exact(operation: Operation) -> bool:
    return operation.planned.dtype in ("F32", "F64")


def _norms_are_columns(operation: Operation) -> bool:
    """Return whether DoRA's norms run over what is stored as columns."""
    return operation.is_transposed and any("magnitude" in share.layer.parts for share in operation.shares)


class _ReadOnce:
    """Reads a change when the first block needs it, and lets go of it with the last."""

    def __init__(self, read: Callable[[], Change | None]) -> None:
        self._read, self._lock = read, threading.Lock()
        self._known: tuple[Change | None] | None = None

    def __call__(self) -> Change | None:
        with self._lock:
            if self._known is None:
                self._known = (self._read(),)
            return self._known[0]


def _row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield rows in blocks of about equal size, none of a few rows only: BLAS multiplies those in another order."""
    num_rows = shape[0]
    count = max(1, prod(shape) // BLOCK_ELEMENTS)
    step = -(-num_rows // count // _FEWEST_ROWS) * _FEWEST_ROWS or _FEWEST_ROWS
    begin = 0
    while begin < num_rows:
        end = begin + step if num_rows - begin - step >= _FEWEST_ROWS else num_rows
        yield slice(begin, end)
        begin = end


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
