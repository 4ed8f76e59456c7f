"""How many CPU threads compute."""

from __future__ import annotations

import os

import torch
from torch import nn

from tunesmith.model.adapters import linear_layers
from tunesmith.train.meter import num_numbers

# FLOPs of a product below which two threads take longer than one: waking the second, which sleeps between products so
# that neighbours get the core, costs more than it takes over. Measured break-even 2e8 (docs/log.md).
_WORTH_SHARING = 1.5e8


def num_threads_for(model: nn.Module, tokens: float, most: int) -> int:
    """Return one thread where even the largest product of a micro-batch is too small to share, `most` otherwise.

    Args:
        tokens: positions of a usual micro-batch.
    """
    largest = max((num_numbers(layer) for layer in linear_layers(model).values()), default=0)  # 0: all are unusual
    return 1 if largest and 2 * tokens * largest < _WORTH_SHARING else most


def are_given() -> bool:
    """Return whether somebody has said how many threads there are: the user, or whoever started several ranks."""
    return "OMP_NUM_THREADS" in os.environ


def use_one_if_better(model: nn.Module, tokens: float) -> bool:
    """Compute with one thread where several would be slower; return whether that is so.

    Depends on shapes alone, so that a training that goes on computes as it began: sums of another number of threads
    differ in their last digits.
    """
    before = torch.get_num_threads()
    if are_given() or num_threads_for(model, tokens, before) == before:
        return False
    torch.set_num_threads(1)
    return True
