"""Frozen weights that stay in the 16 bits in which the checkpoint stores them, while products are made in float32.

Every bfloat16 and float16 number is a float32 number as well, so a weight that is made wide for its product gives the
bits of a model that is held in float32, in half the memory. That costs about a hundredth of a product with 1,024
positions, forward and backward (docs/log.md): the wide form goes into one and the same memory for all layers.

What stays wide: what moves; what is no plain `nn.Linear` (`Conv1D`, experts in one tensor); norms and biases, which are
small; and embedding and output head. The gradient that the head hands down is a sum over the vocabulary: made from
pieces of the head it would end in other digits, and a wide copy of all of it is what would be saved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.model.frozen_linear import FrozenLinear
from tunesmith.model.scratch import Scratch
from tunesmith.recipe.targets import is_whole

NARROW = (torch.bfloat16, torch.float16)


class StoredLinear(FrozenLinear):
    """A frozen linear layer whose weight keeps its stored format."""

    def __init__(self, linear: nn.Linear, stored: Tensor, scratch: Scratch) -> None:
        num_outputs, num_inputs = stored.shape
        super().__init__(num_outputs, num_inputs, linear.bias, torch.float32)
        self.register_buffer("stored", stored, persistent=False)
        self._scratch = scratch

    @property
    def weight(self) -> Tensor:
        """The weight in float32 and in memory of its own, for code that looks at it past `forward`."""
        return self.stored.float()

    def wide(self) -> Tensor:
        """Return the weight, (out, in), in the memory that all layers share."""
        wide = self._scratch.take("weight", self.stored.numel(), self.dtype)
        return wide.view(self.stored.shape).copy_(self.stored)


def keep_stored(model: Any, *, whole: tuple[str, ...] = ()) -> int:
    """Replace linear layers whose float32 weights are 16-bit numbers by layers that keep these, in place.

    Whether they are is looked up in the numbers themselves, so that nothing can be lost.

    Args:
        whole: endings of the names of modules that are to move, by the rule of `modules_to_save`.

    Returns:
        How many were.
    """
    scratch = Scratch(most_kept_bytes=None)
    found = 0
    for name, module in plain_linears(model, whole):
        stored = _narrowed(module.weight.data)
        if stored is not None:
            put(model, name, StoredLinear(module, stored, scratch))
            found += 1
    return found


def put(model: Any, name: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def plain_linears(model: Any, whole: tuple[str, ...]) -> list[tuple[str, nn.Linear]]:
    """Return the linear layers that can stay as stored, by name."""
    head = model.get_output_embeddings()
    return [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not head and not is_whole(name, whole)
    ]


def _narrowed(weight: Tensor) -> Tensor | None:
    """Return a float32 weight in 16 bits, None where that would change it."""
    for dtype in NARROW:
        stored = weight.to(dtype)
        if torch.equal(stored.float(), weight):
            return stored
    return None
