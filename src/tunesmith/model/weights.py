"""Safetensors checkpoints, tensor by tensor: what is written is laid out from names and shapes before any data is read.

One tensor is in memory at a time, and each file is hashed while it is written.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.model.headers import BITS, INDEX, SINGLE, TensorInfo
from tunesmith.store import files

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")


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


def write_shards(directory: Path, shards: list[list[Planned]], make: Callable[[Planned], Tensor]) -> dict[str, str]:
    """Write a checkpoint's weight files (and the index of several) into a directory.

    Args:
        make: returns a planned tensor's values, called once each, in order.

    Returns:
        The SHA-256 of each file by name.
    """
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    digests = {name: _write_file(directory / name, shard, make) for name, shard in zip(names, shards, strict=True)}
    if count > 1:
        total = sum(tensor.num_bytes for shard in shards for tensor in shard)
        weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        files.write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        digests[INDEX] = files.sha256(directory / INDEX)
    return digests


def _write_file(path: Path, tensors: list[Planned], make: Callable[[Planned], Tensor]) -> str:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for tensor in tensors:
        end = begin + tensor.num_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begins aligned
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in (struct.pack("<Q", len(text)), text):
            file.write(piece)
            digest.update(piece)
        for planned in tensors:
            made = make(planned)
            assert made.dtype == TORCH_DTYPES[planned.dtype], planned.name
            assert tuple(made.shape) == planned.shape, planned.name
            content = memoryview(made.contiguous().reshape(-1).view(torch.uint8).numpy())
            file.write(content)
            digest.update(content)
    return digest.hexdigest()


def read_tensor(info: TensorInfo) -> Tensor:
    """Read one tensor from its file.

    Raises:
        ModelError: the file ends before the tensor does.
    """
    content = bytearray(info.end - info.start)
    with info.file.open("rb") as file:
        file.seek(info.start)
        if file.readinto(content) != len(content):
            raise ModelError("the file is cut short", where=str(info.file), do="copy the checkpoint again")
    if not content:
        return torch.empty(info.shape, dtype=TORCH_DTYPES[info.dtype])
    return torch.frombuffer(content, dtype=TORCH_DTYPES[info.dtype]).reshape(info.shape)
