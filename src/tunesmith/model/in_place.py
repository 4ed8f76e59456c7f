"""Gradients of embeddings and heads that move, added where they lie.

Each is as large as the vocabulary's matrix. Autograd makes a micro-batch's in memory of its own and adds it then: of a
tied matrix two of that size lie beside the gradient itself. A head's is known in the forward pass already (see
`train.token_losses`), so it is done only where a caller promises what will become of the sum of losses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_promised: ContextVar[float | None] = ContextVar("promised", default=None)


@contextlib.contextmanager
def going_backward_times(factor: float) -> Iterator[None]:
    """Promise that the sum of losses made in this block is multiplied by a factor, and goes backward once.

    When memory runs out in the block, gradients are worth nothing any more.
    """
    token = _promised.set(factor)
    try:
        yield
    finally:
        _promised.reset(token)


def promised_factor() -> float | None:
    """Return the factor that the sum of losses under way will be multiplied by, when that is known."""
    return _promised.get()


def is_added_in_place(weight: Tensor) -> bool:
    """Return whether a weight's gradient may be added where it lies: that is promised, it moves in 32 bits itself, and
    nobody waits for what autograd would add.
    """
    waiting = weight._post_accumulate_grad_hooks or weight._backward_hooks
    moves = weight.is_leaf and weight.requires_grad and weight.dtype == torch.float32
    return promised_factor() is not None and moves and not waiting


def gradient_of(weight: Tensor) -> Tensor:
    """Return a weight's gradient, zeros where there was none."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


def add_embeddings_in_place(model: nn.Module) -> None:
    """Let embeddings that move add to the gradients that they have, where that is promised.

    On a CPU: a GPU would add the rows of a token in any order, and no two trainings were alike.
    """
    for module in model.modules():
        plain = type(module) is nn.Embedding and module.max_norm is None
        if plain and not (module.scale_grad_by_freq or module.sparse) and module.weight.is_cpu:
            module.forward = partial(_embed, module, module.forward)


def _embed(module: nn.Embedding, forward: Any, ids: Tensor) -> Tensor:
    in_place = torch.is_grad_enabled() and is_added_in_place(module.weight)
    found: Tensor = _Embedded.apply(module.weight, ids, module.padding_idx) if in_place else forward(ids)
    return found


class _Embedded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_VH: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        ctx.weight_VH, ctx.ids, ctx.padding = weight_VH, ids, padding
        return nn.functional.embedding(ids, weight_VH)

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor) -> tuple[None, None, None]:
        ids_N, of_rows_NH = ctx.ids.flatten(), arriving[0].flatten(0, -2)
        if ctx.padding is not None:  # learns nothing
            of_rows_NH = of_rows_NH.masked_fill((ids_N == ctx.padding)[:, None], 0)
        gradient_of(ctx.weight_VH).index_add_(0, ids_N, of_rows_NH)
        return None, None, None
