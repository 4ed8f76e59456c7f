"""A copy of tensors in host memory, so that they can be written while training changes the originals.

The memory is kept for the next copy: asking the system for it anew costs more than the copy itself.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.track.console import say
from tunesmith.train.checkpoint_files import Part

Parts = dict[str, dict[str, Part]]  # kind (weights, optimizer) -> name -> part


class Snapshot:
    """Copies parts into memory of its own."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self._said = False

    def take(self, parts: Parts, *, num_copies: int = 1) -> Parts | None:
        """Return a copy of everything, valid until the next call; None when memory is too short for one.

        Args:
            num_copies: how many processes on this machine take one at this moment.
        """
        named = {(kind, name): part for kind, tensors in parts.items() for name, part in tensors.items()}
        wanted = {key: part for key, part in named.items() if not self._fits(key, part.values)}
        num_bytes = sum(part.values.numel() * part.values.element_size() for part in wanted.values())
        free = free_memory_bytes() if num_bytes else None
        if free is not None and num_bytes * num_copies > free:
            self._buffers.clear()
            self._say_once(num_bytes * num_copies, free)
            return None
        try:
            for key, part in wanted.items():
                self._buffers[key] = _buffer_for(part.values)
        except (RuntimeError, MemoryError):  # PyTorch raises the former
            self._buffers.clear()
            self._say_once(num_bytes * num_copies, free)
            return None
        return self._copy(parts)

    def _fits(self, key: tuple[str, str], values: Tensor) -> bool:
        buffer = self._buffers.get(key)
        return buffer is not None and buffer.shape == values.shape and buffer.dtype == values.dtype

    def _copy(self, parts: Parts) -> Parts:
        copied: Parts = {kind: {} for kind in parts}
        on_device = False
        with torch.no_grad():
            for kind, tensors in parts.items():
                for name, part in tensors.items():
                    buffer = self._buffers[kind, name]
                    buffer.copy_(part.values, non_blocking=True)
                    on_device |= part.values.is_cuda
                    copied[kind][name] = Part(buffer, part.num_rows, part.begin)
        if on_device:
            torch.cuda.synchronize()
        return copied

    def _say_once(self, num_bytes: int, free: int | None) -> None:
        if not self._said:
            of = f"; {free / 2**30:.1f} are free" if free is not None else ""
            need = f"a copy needs {num_bytes / 2**30:.1f} GiB of memory{of}"
            say(f"  train: waits while checkpoints are written ({need})")
        self._said = True


def _buffer_for(values: Tensor) -> Tensor:
    # Pinned memory is several times faster to copy into, and only then does `non_blocking` mean something.
    return torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=values.is_cuda)


def free_memory_bytes() -> int | None:
    """Return how much more memory this process can take for good; None where the system does not say.

    What it used at its worst moment it will use again, so that part is not free: gradients, for one, are gone by the
    time a checkpoint is made.
    """
    free = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        free.append(_table("/proc/meminfo")["MemAvailable:"] << 10)
    with contextlib.suppress(OSError, ValueError, KeyError):  # the container's limit; page cache does not count
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free.append(limit - _table("/sys/fs/cgroup/memory.stat")["anon"])
    with contextlib.suppress(OSError, ValueError, KeyError):
        status = _table("/proc/self/status")
        used_again = (status["VmHWM:"] - status["VmRSS:"]) << 10
        return min(free) - used_again if free else None
    return min(free) if free else None


def processes_here() -> int:
    """Return how many ranks of this training run on this machine, as torchrun says."""
    number = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return int(number) if number.isdigit() else 1


def _table(path: str) -> dict[str, int]:
    """Return the numbers of a file of names and numbers."""
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) >= 2 and words[1].isdigit()}
