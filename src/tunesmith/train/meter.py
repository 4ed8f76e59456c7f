"""Speed and memory of a training, and how near it comes to what the device can do.

Model FLOPs of one position, as PaLM (Chowdhery et al. 2022, appendix B) counts them, without recomputation: a product
with a matrix of n numbers takes 2n forward and 2n for the gradient of its input; 2n more where the matrix itself moves.
Attention takes 4·width for each (query, key) pair of each layer, and twice that backward.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, fields
from typing import Any

import torch

from tunesmith.model.adapters import linear_layers
from tunesmith.model.frozen_linear import FrozenLinear

_MEASURE_SECONDS = 0.1


@dataclass
class Counts:
    """What went through the model, over all ranks."""

    tokens: float = 0.0  # of sequences, without padding
    trained: float = 0.0  # with a loss
    computed: float = 0.0  # positions; padding counts, a shared beginning counts once
    pairs: float = 0.0  # (query, key)

    @property
    def shared(self) -> float:
        """The share of the tokens that needed no computing, as they lay in a beginning that was there already."""
        return max(0.0, 1.0 - self.computed / max(1.0, self.tokens))

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Flops:
    """What one position costs."""

    body: int  # numbers in the linear layers
    head: int
    attention: int  # layers × width of all heads
    adapter: int  # numbers in the adapters
    base_moves: bool

    @classmethod
    def of(cls, model: Any, num_adapter: int) -> Flops:
        """Count a model's linear layers. Experts that lie in one tensor are not linear layers, and are left out."""
        config = model.config.get_text_config()
        layers = linear_layers(model).values()
        head = model.get_output_embeddings()
        heads = int(getattr(config, "num_attention_heads", 0) or 0)
        head_size = getattr(config, "head_dim", None) or int(config.hidden_size) // max(1, heads)
        return cls(
            body=sum(num_numbers(layer) for layer in layers),
            head=int(head.weight.numel()) if head is not None else 0,
            attention=int(config.num_hidden_layers) * heads * int(head_size),
            adapter=num_adapter,
            base_moves=num_adapter == 0,
        )

    def of_step(self, counts: Counts) -> float:
        """Return the FLOPs of a step with these counts."""
        passes = 6 if self.base_moves else 4
        linear = passes * (self.body * counts.computed + self.head * counts.trained)
        return linear + 12 * self.attention * counts.pairs + 6 * self.adapter * counts.computed


def num_numbers(layer: Any) -> int:
    """Return the numbers in a linear layer's matrix."""
    if isinstance(layer, FrozenLinear):
        return int(layer.out_features * layer.in_features)
    return int(layer.weight.numel())


class Meter:
    """Counts tokens against the clock; validation and saving are not on it."""

    def __init__(self, *, counts: Counts, seconds: float, flops: Flops, num_ranks: int) -> None:
        self.counts, self.seconds = counts, seconds
        self._mark = (counts, seconds)
        self._flops, self._num_ranks = flops, num_ranks
        self._peak = 0.0
        self._began = 0.0

    def start(self) -> None:
        """Begin a step."""
        self._began = time.perf_counter()

    def stop(self, counts: Counts) -> None:
        """End a step that saw so much."""
        self.seconds += time.perf_counter() - self._began
        self.counts = self.counts + counts

    def rates(self, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
        """Return tokens per second and the share of the device's matrix peak since the last call."""
        counts, seconds = self._mark
        elapsed = max(1e-9, self.seconds - seconds)
        since = self.counts - counts
        self._mark = (self.counts, self.seconds)
        reached = self._flops.of_step(since) / elapsed / self._num_ranks
        if reached > self._peak:  # not measured yet, or while something else was computing
            self._peak = max(reached, matrix_peak(device, dtype))
        return {
            "train/tokens_per_second": since.tokens / elapsed,
            "train/trained_tokens_per_second": since.trained / elapsed,
            "train/mfu": reached / self._peak,
            "train/shared_tokens": since.shared,
        }


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large matrix product on this device, the best of four. Costs about 0.1 s.

    Where one product alone takes longer (16 bits on a CPU without instructions for them), it is the only one.
    """
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best, ends = 0.0, time.perf_counter() + _MEASURE_SECONDS
    for number in range(4):
        if number and device.type == "cpu" and time.perf_counter() > ends:
            break
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def peak_memory_bytes() -> int:
    """Return the most memory this process has held: on the GPU when there is one, resident otherwise."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
