"""Cross-entropy of the trained tokens, without the logits of all the others and without ever holding all of them.

Logits are made for a chunk of positions at a time, in float32. Positions do not meet each other in the head, so each
one's gradient is known with its loss, up to the factor that arrives in the backward pass: where the head does not move,
and where one factor comes for all (a sum), gradients are made together with the losses, and nothing of a chunk's logits
outlives it. Otherwise (a head that moves under DPO) the backward pass makes each chunk's logits again.

Shapes: N positions with a loss, C of them in a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tunesmith.model.head import SplitModel
from tunesmith.model.in_place import gradient_of, is_added_in_place, promised_factor
from tunesmith.model.recomputed import keeping_less
from tunesmith.recipe.memory import LOGITS_CHUNK_BYTES
from tunesmith.train.batches import Batch


class TokenLosses(nn.Module):
    """The model with its head and loss as one module: what every rank calls, and what is sharded as a whole.

    Attributes:
        recomputes: whether parts of the model are made again in the backward pass (`model.recomputed`).
        adds_in_place: whether gradients may be added where they lie (`model.in_place`).
    """

    def __init__(self, split: SplitModel) -> None:
        super().__init__()
        self.split = split
        self.model = split.model
        self.recomputes = self.adds_in_place = False

    def forward(self, batch: Batch, summed: bool = False) -> Tensor:
        """Return the loss of each trained token in float32, (N,), or their sum."""
        split = self.split
        with keeping_less() if self.recomputes else contextlib.nullcontext():
            hidden_BTH = split.hidden(batch.ids_BT, batch.positions_BT, batch.spans)
        hidden_NH = hidden_BTH.reshape(-1, hidden_BTH.shape[-1])[batch.select_N]
        if not split.head_is_trained:
            losses_N: Tensor = _FrozenHead.apply(hidden_NH, batch.targets_N, split)
            return losses_N.sum() if summed else losses_N
        if summed and split.plain_head is not None and torch.is_grad_enabled():
            total: Tensor = _MovingHeadSum.apply(hidden_NH, split.plain_head.weight, batch.targets_N, split)
            return total
        pieces = zip(_chunks(hidden_NH, split), _chunks(batch.targets_N, split), strict=True)
        if torch.is_grad_enabled():
            losses = [checkpoint(_losses, h, t, split, use_reentrant=False) for h, t in pieces]
        else:
            losses = [_losses(h, t, split) for h, t in pieces]
        return torch.cat(losses).sum() if summed else torch.cat(losses)


_PARTS = 4  # of a chunk of logits, whose softmax is made one after another


def _losses(hidden_CH: Tensor, targets_C: Tensor, split: SplitModel) -> Tensor:
    return functional.cross_entropy(split.logits(hidden_CH), targets_C, reduction="none")


def _chunks(values_N: Tensor, split: SplitModel) -> tuple[Tensor, ...]:
    """Cut along N so that one chunk's logits take LOGITS_CHUNK_BYTES."""
    size = max(16, LOGITS_CHUNK_BYTES[values_N.device.type] // (4 * split.vocab_size))
    return values_N.split(size) if len(values_N) else (values_N,)


def _of_plain_head(
    hidden_CH: Tensor, weight_VH: Tensor, targets_C: Tensor, losses_C: Tensor, of_hidden_CH: Tensor,
    of_weight_VH: Tensor | None = None, factor: float = 1.0,
) -> None:  # fmt: skip
    """Fill in losses and the gradient of their sum with respect to the hidden states; add the weight's, times a factor.

    The logits' own memory is used for everything, some rows at a time, and nothing made here outlives the call: a small
    tensor in the place of freed logits would make the next chunk's take new memory.
    """
    gradient_CV = functional.linear(hidden_CH, weight_VH)
    parts = (values.split(-(-len(targets_C) // _PARTS) or 1) for values in (gradient_CV, targets_C, losses_C))
    for gradient_PV, targets_P, losses_P in zip(*parts, strict=True):
        log_p_PV = functional.log_softmax(gradient_PV.float(), dim=-1)
        torch.neg(log_p_PV.gather(1, targets_P[:, None])[:, 0], out=losses_P)
        p_PV = torch.exp(log_p_PV, out=gradient_PV if gradient_PV.dtype == torch.float32 else log_p_PV)
        p_PV.scatter_add_(1, targets_P[:, None], p_PV.new_full((len(targets_P), 1), -1.0))
        gradient_PV.copy_(p_PV)
    of_hidden_CH.copy_(gradient_CV @ weight_VH)
    if of_weight_VH is None:
        return
    if weight_VH.dtype == torch.float32:
        of_weight_VH.addmm_(gradient_CV.T, hidden_CH, alpha=factor)
    else:
        of_weight_VH.add_(gradient_CV.T @ hidden_CH, alpha=factor)


class _FrozenHead(torch.autograd.Function):
    """Losses of a head that does not move."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, targets_N: Tensor, split: SplitModel) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        losses_N = hidden_NH.new_empty(len(hidden_NH), dtype=torch.float32)
        gradient_NH = torch.empty_like(hidden_NH) if wanted else hidden_NH
        every = (_chunks(values, split) for values in (hidden_NH, targets_N, losses_N, gradient_NH))
        for hidden_CH, targets_C, losses_C, of_hidden_CH in zip(*every, strict=True):
            if not wanted:
                losses_C.copy_(_losses(hidden_CH, targets_C, split))
            elif split.plain_head is not None:
                _of_plain_head(hidden_CH, split.plain_head.weight, targets_C, losses_C, of_hidden_CH)
            else:
                with torch.enable_grad():
                    hidden_CH = hidden_CH.detach().requires_grad_()
                    found_C = _losses(hidden_CH, targets_C, split)
                    of_hidden_CH.copy_(torch.autograd.grad(found_C.sum(), hidden_CH)[0])
                losses_C.copy_(found_C.detach())
        if wanted:
            ctx.save_for_backward(gradient_NH)
        return losses_N

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor) -> tuple[Tensor, None, None]:
        (gradient_NH,) = ctx.saved_tensors
        return (gradient_NH * arriving[0][:, None]).to(gradient_NH.dtype), None, None


class _MovingHeadSum(torch.autograd.Function):
    """Sum of the losses of a head that moves: its weight's gradient is summed in float32 over the chunks, and where the
    factor is promised (`model.in_place`) added to the gradient that lies there.
    """

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, split: SplitModel) -> Tensor:
        losses_N = hidden_NH.new_empty(len(hidden_NH), dtype=torch.float32)
        gradient_NH = torch.empty_like(hidden_NH)
        ctx.in_place, ctx.factor = is_added_in_place(weight_VH), 1.0
        if ctx.in_place:
            of_weight_VH, ctx.factor = gradient_of(weight_VH), promised_factor() or 1.0
        else:
            of_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32)
        every = (_chunks(values, split) for values in (hidden_NH, targets_N, losses_N, gradient_NH))
        for hidden_CH, targets_C, losses_C, of_hidden_CH in zip(*every, strict=True):
            _of_plain_head(hidden_CH, weight_VH, targets_C, losses_C, of_hidden_CH, of_weight_VH, ctx.factor)
        ctx.save_for_backward(gradient_NH, *([] if ctx.in_place else [of_weight_VH]))
        ctx.weight_dtype = weight_VH.dtype
        return losses_N.sum()

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        gradient_NH, *of_weight = ctx.saved_tensors
        factor = arriving[0]
        of_hidden_NH = (gradient_NH * factor).to(gradient_NH.dtype)
        if not ctx.in_place:
            return of_hidden_NH, of_weight[0].mul_(factor).to(ctx.weight_dtype), None, None
        as_promised = not factor.is_cpu or math.isclose(float(factor), ctx.factor, rel_tol=1e-5)
        assert as_promised, "the sum of losses goes backward with another factor than was promised"
        return of_hidden_NH, None, None, None
