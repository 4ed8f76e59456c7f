"""Cross-entropy of the trained tokens, without the logits of all the others and without ever holding all of them.

Logits are made for a chunk of positions at a time, in float32. Positions do not meet each other in the head, so each
one's gradient is known with its loss, up to the factor that arrives in the backward pass: where the head does not move,
and where one factor comes for all (a sum), gradients are made together with the losses, and nothing of a chunk's logits
outlives it. Otherwise (a head that moves under DPO) the backward pass makes each chunk's logits again.

Shapes: N positions with a loss, C of them in a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tunesmith.model.head import SplitModel
from tunesmith.recipe.memory import LOGITS_CHUNK_BYTES
from tunesmith.train.batches import Batch


class TokenLosses(nn.Module):
    """The model with its head and loss as one module: what every rank calls, and what is sharded as a whole."""

    def __init__(self, split: SplitModel) -> None:
        super().__init__()
        self.split = split
        self.model = split.model

    def forward(self, batch: Batch, summed: bool = False) -> Tensor:
        """Return the loss of each trained token in float32, (N,), or their sum."""
        split = self.split
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


def _of_plain_head(hidden_CH: Tensor, weight_VH: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses, (C,), and the gradient of their sum with respect to the logits, (C, V), in the format of the
    head. The logits' own memory is used for everything.
    """
    log_p_CV = functional.log_softmax(functional.linear(hidden_CH, weight_VH).float(), dim=-1)
    losses_C = -log_p_CV.gather(1, targets_C[:, None])[:, 0]
    gradient_CV = log_p_CV.exp_()
    gradient_CV.scatter_add_(1, targets_C[:, None], gradient_CV.new_full((len(targets_C), 1), -1.0))
    return losses_C, gradient_CV.to(weight_VH.dtype)


class _FrozenHead(torch.autograd.Function):
    """Losses of a head that does not move."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, targets_N: Tensor, split: SplitModel) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        losses, gradients = [], []
        for hidden_CH, targets_C in zip(_chunks(hidden_NH, split), _chunks(targets_N, split), strict=True):
            if not wanted:
                losses.append(_losses(hidden_CH, targets_C, split))
            elif split.plain_head is not None:
                weight_VH = split.plain_head.weight
                losses_C, gradient_CV = _of_plain_head(hidden_CH, weight_VH, targets_C)
                losses.append(losses_C)
                gradients.append(gradient_CV @ weight_VH)
                del gradient_CV  # before the next chunk's logits are made
            else:
                with torch.enable_grad():
                    hidden_CH = hidden_CH.detach().requires_grad_()
                    losses_C = _losses(hidden_CH, targets_C, split)
                    gradients += torch.autograd.grad(losses_C.sum(), hidden_CH)
                losses.append(losses_C.detach())
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor) -> tuple[Tensor, None, None]:
        (gradient_NH,) = ctx.saved_tensors
        return (gradient_NH * arriving[0][:, None]).to(gradient_NH.dtype), None, None


class _MovingHeadSum(torch.autograd.Function):
    """Sum of the losses of a head that moves: its weight's gradient is summed in float32 over the chunks."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, split: SplitModel) -> Tensor:
        total = hidden_NH.new_zeros((), dtype=torch.float32)
        gradients = []
        of_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32)
        for hidden_CH, targets_C in zip(_chunks(hidden_NH, split), _chunks(targets_N, split), strict=True):
            losses_C, gradient_CV = _of_plain_head(hidden_CH, weight_VH, targets_C)
            total += losses_C.sum()
            gradients.append(gradient_CV @ weight_VH)
            if weight_VH.dtype == torch.float32:
                of_weight_VH.addmm_(gradient_CV.T, hidden_CH)
            else:
                of_weight_VH += gradient_CV.T @ hidden_CH
            del gradient_CV  # before the next chunk's logits are made
        ctx.save_for_backward(torch.cat(gradients), of_weight_VH)
        ctx.weight_dtype = weight_VH.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor) -> tuple[Tensor, Tensor, None, None]:
        gradient_NH, of_weight_VH = ctx.saved_tensors
        factor = arriving[0]
        of_hidden_NH = (gradient_NH * factor).to(gradient_NH.dtype)
        return of_hidden_NH, of_weight_VH.mul_(factor).to(ctx.weight_dtype), None, None
