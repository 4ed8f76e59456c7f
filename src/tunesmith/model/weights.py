"""Tensors of safetensors files, read whole or by rows, and the layout of files that are to be written."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.model.headers import BITS, SINGLE, TensorInfo
from tunesmith.model.scratch import Scratch

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")


# ── Read ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_tensor(info: TensorInfo) -> Tensor:
    """Read one tensor from its file.

    Raises:
        ModelError: the file ends before the tensor does.
    """
    return _read(info, info.start, info.end).reshape(info.shape)


def read_rows(info: TensorInfo, begin: int, end: int, scratch: Scratch | None = None) -> Tensor:
    """Read rows [begin, end) of a tensor.

    Args:
        scratch: whose memory `read` is filled; None takes new memory.

    Raises:
        ModelError: the file ends before they do.
    """
    row_bytes = (info.end - info.start) // max(1, info.shape[0])
    content = _read(info, info.start + begin * row_bytes, info.start + end * row_bytes, scratch)
    return content.reshape(end - begin, *info.shape[1:])


def _read(info: TensorInfo, start: int, end: int, scratch: Scratch | None = None) -> Tensor:
    content = (scratch or Scratch()).take("read", end - start, torch.uint8)
    if end > start:
        with info.file.open("rb", buffering=0) as file:
            read_into(file.fileno(), memoryview(content.numpy()), start, info.file)
    return content.view(TORCH_DTYPES[info.dtype])


def read_into(descriptor: int, target: memoryview, offset: int, path: Path) -> None:
    """Fill a buffer from a place in an open file.

    Raises:
        ModelError: the file ends before, or cannot be read.
    """
    filled = 0
    while filled < len(target):
        try:
            got = os.preadv(descriptor, [target[filled:]], offset + filled)
        except OSError as error:
            raise ModelError(f"the file cannot be read: {error.strerror}", where=str(path)) from None
        if not got:
            raise ModelError("the file is cut short", where=str(path), do="copy the checkpoint again")
        filled += got


# ── Lay out ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Planned:
    """A tensor to be written."""

    name: str
    dtype: str  # safetensors' name
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * BITS[self.dtype] // 8


def plan_shards(tensors: Iterable[Planned], max_shard_bytes: int) -> list[list[Planned]]:
    """Fill files one after the other; a tensor above the limit gets a file of its own."""
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.num_bytes
    return shards


def shard_names(count: int) -> list[str]:
    """Return the names of a checkpoint's weight files, as transformers gives them."""
    return [SINGLE] if count == 1 else [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def header_of(tensors: Iterable[Planned]) -> bytes:
    """Return what a safetensors file begins with; the tensors follow in this order, without gaps."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for tensor in tensors:
        end = begin + tensor.num_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begins aligned
    return struct.pack("<Q", len(text)) + text
