"""Speed and memory of a training."""

from __future__ import annotations

import resource
import sys
import time

import torch


class Meter:
    """Counts tokens against the clock; validation and saving are not on it."""

    def __init__(self, *, tokens_before: int, trained_before: int, seconds_before: float) -> None:
        self.num_tokens, self.num_trained, self.seconds = tokens_before, trained_before, seconds_before
        self._mark = (self.num_tokens, self.num_trained, self.seconds)
        self._began = 0.0

    def start(self) -> None:
        """Begin a step."""
        self._began = time.perf_counter()

    def stop(self, num_tokens: int, num_trained: int) -> None:
        """End a step that saw so many tokens, and so many with a loss."""
        self.seconds += time.perf_counter() - self._began
        self.num_tokens += num_tokens
        self.num_trained += num_trained

    def rates(self) -> dict[str, float]:
        """Return tokens per second since the last call."""
        tokens, trained, seconds = self._mark
        elapsed = max(1e-9, self.seconds - seconds)
        self._mark = (self.num_tokens, self.num_trained, self.seconds)
        return {
            "train/tokens_per_second": (self.num_tokens - tokens) / elapsed,
            "train/trained_tokens_per_second": (self.num_trained - trained) / elapsed,
        }


def peak_memory_bytes() -> int:
    """Return the most memory this process has held: on the GPU when there is one, resident otherwise."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
