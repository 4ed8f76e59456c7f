"""The ranks of a training and how they agree. One process alone is a world of one, and speaks to nobody."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import RankLost

# Longer than any step or checkpoint; data is tokenised before the ranks start.
_TIMEOUT = datetime.timedelta(minutes=30)
_BUCKET_ELEMENTS = 16 << 20


@dataclass(frozen=True)
class World:
    """This process among its peers.

    Attributes:
        rank: 0 … size - 1; rank 0 writes what all share.
        device: where this rank's tensors live.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sums(self, values: list[float]) -> list[float]:
        """Return the sum over all ranks of each number, in float64. Every rank must call it."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks in place, and return it."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def from_first(self, value: Any) -> Any:
        """Return what rank 0 holds (plain data)."""
        if self.size == 1:
            return value
        held = [value]
        torch.distributed.broadcast_object_list(held, src=0, device=self.device)
        return held[0]

    def wait_for_all(self) -> None:
        """Return when every rank is here."""
        self.sums([0.0])

    def sum_gradients(self, weights: list[nn.Parameter]) -> None:
        """Add up the float32 gradients of all ranks in place, in buckets of 64 MiB that travel at the same time."""
        if self.size == 1:
            return
        for weight in weights:
            if weight.grad is None:  # this rank had no row that reaches it
                weight.grad = torch.zeros_like(weight)
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        under_way = []
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            under_way.append((torch.distributed.all_reduce(flat, async_op=True), flat, bucket))
        for work, flat, bucket in under_way:
            work.wait()
            for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket, elements = list[Tensor](), 0
    for tensor in tensors:
        if bucket and elements + tensor.numel() > _BUCKET_ELEMENTS:
            yield bucket
            bucket, elements = [], 0
        bucket.append(tensor)
        elements += tensor.numel()
    if bucket:
        yield bucket


@contextlib.contextmanager
def open_world(device: torch.device) -> Iterator[World]:
    """Meet the other ranks that torchrun started (RANK, WORLD_SIZE, …); without these, be alone.

    Args:
        device: of this rank.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(0, 1, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield World(torch.distributed.get_rank(), size, device)
    except RuntimeError as error:
        if not _is_about_a_peer(error):
            raise
        raise RankLost("another rank ended, or cannot be reached any more", do="see what it printed") from None
    finally:
        with contextlib.suppress(RuntimeError):
            torch.distributed.destroy_process_group()


def _is_about_a_peer(error: RuntimeError) -> bool:
    words = ("closed by peer", "Connection reset", "Broken pipe", "gloo", "NCCL", "ProcessGroup", "TCPStore")
    return isinstance(error, torch.distributed.DistError) or any(word in str(error) for word in words)


def local_rank() -> int:
    """Return this process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))
