"""Memory that is used again: fresh pages cost about as much time as what is computed in them."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

_MOST_KEPT_BYTES = 32 << 20


def anonymous(num_bytes: int) -> Tensor:
    """Return memory of the process's own as flat uint8; in huge pages where the system has them, which saves time."""
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError, AttributeError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


class Scratch:
    """Tensors by name, for one thread.

    Args:
        most_kept_bytes: larger tensors are not kept; None keeps all.
    """

    def __init__(self, most_kept_bytes: int | None = _MOST_KEPT_BYTES) -> None:
        self._kept: dict[str, Tensor] = {}
        self._most_kept_bytes = most_kept_bytes

    def take(self, name: str, num_elements: int, dtype: torch.dtype) -> Tensor:
        """Return a flat tensor; what it held before is lost."""
        num_bytes = num_elements * dtype.itemsize
        if not num_bytes or (self._most_kept_bytes is not None and num_bytes > self._most_kept_bytes):
            return torch.empty(num_elements, dtype=dtype)
        if name not in self._kept or self._kept[name].numel() < num_bytes:
            self._kept[name] = anonymous(num_bytes)
        return self._kept[name][:num_bytes].view(dtype)
