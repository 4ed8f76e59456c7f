"""Tensors of a checkpoint as files: written in pieces and hashed on the way, read back row by row.

The files are safetensors (https://github.com/huggingface/safetensors#format). Of a tensor that ranks share (a DTensor
sharded on its first dimension), each rank writes its own rows. The file's metadata then says which they are: `rows` is
a JSON object of name -> [rows of the whole tensor, first row in this file].
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from tunesmith.model.weights import TORCH_DTYPES
from tunesmith.store import files

_PIECE_BYTES = 32 << 20
_FLUSH_BYTES = 128 << 20  # unwritten data beyond this makes every other fsync on the machine wait
_SAFETENSORS_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

Listed = dict[str, Any]  # what the manifest says of a file: num_bytes and sha256


@dataclass(frozen=True)
class Part:
    """What one rank holds of a tensor.

    Attributes:
        values: its rows, or the whole tensor.
        num_rows: of the whole tensor; None when `values` is all of it.
        begin: the first row here.
    """

    values: Tensor
    num_rows: int | None = None
    begin: int = 0


def is_sharded(tensor: Tensor) -> bool:
    """Return whether each rank holds only some rows of a tensor."""
    return _is_dtensor(tensor) and any(not placement.is_replicate() for placement in tensor.placements)


def held(tensor: Tensor) -> Part:
    """Return what this rank holds of a tensor; its values share the tensor's memory."""
    if not _is_dtensor(tensor):
        return Part(tensor.detach())
    local = tensor.detach().to_local()
    if not is_sharded(tensor):
        return Part(local)
    dimension = _sharded_dimension(tensor)
    num_rows = tensor.shape[0]
    # What `torch.chunk` gives each rank: rows rounded up, so that the last ranks may hold fewer or none.
    chunk = -(-num_rows // tensor.device_mesh.size(dimension))
    begin = min(num_rows, chunk * tensor.device_mesh.get_local_rank(dimension))
    assert len(local) == min(chunk, num_rows - begin), "rows are dealt out like torch.chunk"
    return Part(local, num_rows, begin)


def parts_of(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Part]:
    """Return what a rank writes: its own rows of shared tensors; on rank 0 the others as well."""
    found = {}
    for name, tensor in tensors.items():
        if is_sharded(tensor):
            part = held(tensor)
            writes = _is_first_replica(tensor) and (len(part.values) > 0 or part.num_rows == 0)
        else:
            part, writes = held(tensor), rank == 0
        if writes:
            found[name] = part
    return found


def shaped_like(weight: Tensor, local: Tensor) -> Tensor:
    """Return this rank's rows as a DTensor that is dealt out as `weight` is."""
    from torch.distributed.tensor import DTensor

    wanted: Tensor = DTensor.from_local(
        local, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride()
    )
    return wanted


def _is_dtensor(tensor: Tensor) -> bool:
    # Importing it takes a second. Whoever has a DTensor has imported it; a training on one device need not.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _sharded_dimension(tensor: Any) -> int:
    """Return the dimension of the device mesh over which the rows are dealt out."""
    sharded = [number for number, placement in enumerate(tensor.placements) if not placement.is_replicate()]
    assert len(sharded) == 1 and tensor.placements[sharded[0]].is_shard(0), f"not supported: {tensor.placements}"
    return sharded[0]


def _is_first_replica(tensor: Any) -> bool:
    dimension = _sharded_dimension(tensor)
    mesh = tensor.device_mesh
    return all(mesh.get_local_rank(number) == 0 for number in range(mesh.ndim) if number != dimension)


def write_tensors(path: Path, parts: dict[str, Part]) -> Listed:
    """Write a safetensors file and force it to the disk; nothing is read back for its SHA-256."""
    # Wide types first: then every tensor begins at a multiple of its item size, which readers ask for.
    ordered = sorted(parts.items(), key=lambda item: -item[1].values.element_size())
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "rows": _rows_metadata(parts)}}
    begin = 0
    for name, part in ordered:
        end = begin + part.values.numel() * part.values.element_size()
        dtype, shape = _SAFETENSORS_NAMES[part.values.dtype], list(part.values.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _write(path, _pieces(struct.pack("<Q", len(text)) + text, (part.values for _, part in ordered)))


def write_text(path: Path, text: str) -> Listed:
    """Write a small file and force it to the disk. Its directory has to exist: one that was given up stays away."""
    return _write(path, [memoryview(text.encode())])


def _rows_metadata(parts: dict[str, Part]) -> str:
    return json.dumps({name: [part.num_rows, part.begin] for name, part in parts.items() if part.num_rows is not None})


def _pieces(head: bytes, tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    yield memoryview(head)
    for tensor in tensors:
        content = memoryview(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        for begin in range(0, len(content), _PIECE_BYTES):
            yield content[begin : begin + _PIECE_BYTES]


def _write(path: Path, pieces: Iterable[memoryview]) -> Listed:
    digest = hashlib.sha256()
    num_bytes = flushed = 0
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            num_bytes += len(piece)
            if num_bytes - flushed >= _FLUSH_BYTES:
                _force(file)
                flushed = num_bytes
        _force(file)
    return {"num_bytes": num_bytes, "sha256": digest.hexdigest()}


def _force(file: Any) -> None:
    """Force what was written so far to the disk, and give its memory back: it is rarely read soon."""
    file.flush()
    os.fsync(file.fileno())
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def file_fault(file: Path, listed: Listed) -> str | None:
    """Return what is wrong with a file, or None when it is what was written."""
    try:
        size = file.stat().st_size
        if size != listed["num_bytes"]:
            return f"{file.name} has {size:,} bytes of {listed['num_bytes']:,}"
        if files.sha256(file) != listed["sha256"]:
            return f"the content of {file.name} is not what was written"
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read: {error}"
    return None


class SavedTensors:
    """The tensors of one kind in a checkpoint, from however many files they lie in.

    Attributes:
        shapes: of the whole tensors, by name.
        shared: names of those that ranks shared when they were saved.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = list(paths)
        self._stack = contextlib.ExitStack()
        self._places: dict[str, list[tuple[Any, int]]] = {}  # open file, and which row is the first there
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.shared: set[str] = set()

    def __enter__(self) -> Self:
        from safetensors import safe_open

        for path in self._paths:
            file = self._stack.enter_context(safe_open(str(path), framework="pt"))
            rows = json.loads((file.metadata() or {}).get("rows", "{}"))
            for name in file.keys():  # noqa: SIM118  not a dict
                shape = tuple(file.get_slice(name).get_shape())
                num_rows, begin = rows.get(name, (None, 0))
                self.shapes[name] = shape if num_rows is None else (num_rows, *shape[1:])
                self._places.setdefault(name, []).append((file, begin))
                if num_rows is not None:
                    self.shared.add(name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def fill(self, name: str, part: Part) -> None:
        """Copy a tensor's rows into a part of that tensor, whatever its number format and device."""
        shape = tuple(part.values.shape)
        whole = shape if part.num_rows is None else (part.num_rows, *shape[1:])
        assert self.shapes[name] == whole, f"{name}: saved as {self.shapes[name]}, wanted as {whole}"
        for file, first in self._places[name]:
            if not whole:  # a number has no rows to slice
                part.values.copy_(file.get_tensor(name))
                continue
            saved = file.get_slice(name)
            begin, end = part.begin, part.begin + len(part.values)
            low, high = max(begin, first), min(end, first + saved.get_shape()[0])
            if low < high:
                part.values[low - begin : high - begin].copy_(saved[low - first : high - first])

    def read(self, name: str, like: Part | None = None) -> Tensor:
        """Return a whole tensor, or those of its rows that `like` has, in the number format they were saved in."""
        dtype = TORCH_DTYPES[self._places[name][0][0].get_slice(name).get_dtype()]
        if like is None:
            like = Part(torch.empty(self.shapes[name], device="meta"))
        tensor = torch.empty(like.values.shape, dtype=dtype)
        self.fill(name, Part(tensor, like.num_rows, like.begin))
        return tensor
