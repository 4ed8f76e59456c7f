"""Cross-entropy of the trained tokens, without the logits of all the others and without ever holding all of them.

Logits are made for a chunk of positions at a time, in float32. Positions do not meet each other in the head, so each
one's gradient is known with its loss, up to the factor that arrives in the backward pass: where the head does not move,
and where one factor comes for all (a sum), gradients are made together with the losses, and nothing of a chunk's logits
outlives it. Otherwise (a head that moves under DPO) the backward pass makes each chunk's logits again.

Shapes: N positions with a loss, C of them in a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tunesmith.model.head import SplitModel
from tunesmith.model.recomputed import keeping_less
from tunesmith.recipe.memory import LOGITS_CHUNK_BYTES
from tunesmith.train.batches import Batch


class TokenLosses(nn.Module):
    """The model with its head and loss as one module: what every rank calls, and what is sharded as a whole.

    Attributes:
        recomputes: whether parts of the model are made again in the backward pass (`model.recomputed`).
    """

    def __init__(self, split: SplitModel) -> None:
        super().__init__()
        self.split = split
        self.model = split.model
        self.recomputes = False

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


def _losses(hidden_CH: Tensor, targets_C: Tensor, split: SplitModel) -> Tensor:
    return functional.cross_entropy(split.logits(hidden_CH), targets_C, reduction="none")


def _chunks(values_N: Tensor, split: SplitModel) -> tuple[Tensor, ...]:
    """Cut along N so that one chunk's logits take LOGITS_CHUNK_BYTES."""
    size = max(16, LOGITS_CHUNK_BYTES[values_N.device.type] // (4 * split.vocab_size))
    return values_N.split(size) if len(values_N) else (values_N,)


def _of_plain_head(
    hidden_CH: Tensor, weight_VH: Tensor, targets_C: Tensor, losses_C: Tensor, of_hidden_CH: Tensor,
    of_weight_VH: Tensor | None = None,
) -> None:  # fmt: skip
    """Fill in the losses and the gradient of their sum with respect to the hidden states, and add the weight's.

    The logits' own memory is used for everything, and nothing made here outlives the call: a small tensor in the place
    of freed logits would make the next chunk's take new memory.
    """
    log_p_CV = functional.log_softmax(functional.linear(hidden_CH, weight_VH).float(), dim=-1)
    torch.neg(log_p_CV.gather(1, targets_C[:, None])[:, 0], out=losses_C)
    gradient_CV = log_p_CV.exp_()
    gradient_CV.scatter_add_(1, targets_C[:, None], gradient_CV.new_full((len(targets_C), 1), -1.0))
    gradient_CV = gradient_CV.to(weight_VH.dtype)
    of_hidden_CH.copy_(gradient_CV @ weight_VH)
    if of_weight_VH is None:
        return
    if weight_VH.dtype == torch.float32:
        of_weight_VH.addmm_(gradient_CV.T, hidden_CH)
    else:
        of_weight_VH += gradient_CV.T @ hidden_CH


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
    """Sum of the losses of a head that moves: its weight's gradient is summed in float32 over the chunks."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, split: SplitModel) -> Tensor:
        losses_N = hidden_NH.new_empty(len(hidden_NH), dtype=torch.float32)
        gradient_NH = torch.empty_like(hidden_NH)
        of_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32)
        every = (_chunks(values, split) for values in (hidden_NH, targets_N, losses_N, gradient_NH))
        for hidden_CH, targets_C, losses_C, of_hidden_CH in zip(*every, strict=True):
            _of_plain_head(hidden_CH, weight_VH, targets_C, losses_C, of_hidden_CH, of_weight_VH)
        ctx.save_for_backward(gradient_NH, of_weight_VH)
        ctx.weight_dtype = weight_VH.dtype
        return losses_N.sum()

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor) -> tuple[Tensor, Tensor, None, None]:
        gradient_NH, of_weight_VH = ctx.saved_tensors
        factor = arriving[0]
        of_hidden_NH = (gradient_NH * factor).to(gradient_NH.dtype)
        return of_hidden_NH, of_weight_VH.mul_(factor).to(ctx.weight_dtype), None, None
