"""What parts of a recipe decide, and what they do not."""

from __future__ import annotations

import math

from tunesmith.recipe.schema import Train

# They change speed, memory or what is kept on the way, not the result. What is done about a bad step is among them: a
# training that ended on one goes on under another policy.
WITHOUT_EFFECT: dict[str, tuple[str, ...]] = {
    "data": ("num_workers",),
    "train": (
        "per_device_train_batch_size",
        "num_processes",
        "parallelism",
        "torch_compile",
        "deterministic",
        "on_bad_step",
        "max_loss_spike",
        "gradient_checkpointing",
        "logging_steps",
        "save_steps",
        "save_total_limit",
    ),
}


def num_training_sequences(train: Train, num_sequences: int) -> int:
    """Return how many sequences a training goes through; epochs may be fractions."""
    return math.ceil(round(num_sequences * train.num_train_epochs, 6))


def num_steps(train: Train, num_sequences: int) -> int:
    """Return the optimiser steps of a training; the last global batch may be smaller."""
    steps = math.ceil(num_training_sequences(train, num_sequences) / train.global_batch_size)
    return max(1, min(steps, train.max_steps) if train.max_steps else steps)
