"""What is optimised: a function of (model, micro-batch) that returns (sum of losses, metrics as sums).

The loop divides both by the count of the whole global batch: trained tokens for `sft`, pairs for `dpo`. One rule for
gradient accumulation, packing and ranks.

Shapes: N positions with a loss, H hidden size, V vocabulary, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tunesmith.model.head import SplitModel
from tunesmith.recipe.memory import LOGITS_CHUNK_BYTES
from tunesmith.recipe.schema import Dpo
from tunesmith.train.batches import Batch

Metrics = dict[str, Tensor]
Objective = Callable[[SplitModel, Batch], tuple[Tensor, Metrics]]


def sft(split: SplitModel, batch: Batch) -> tuple[Tensor, Metrics]:
    """Return the cross-entropy summed over the trained tokens."""
    return token_losses(split, batch).sum(), {}


class DpoObjective:
    """Direct preference optimisation against log-probabilities of the reference, known in advance.

    Args:
        reference: (rows, 2) log-probability of the chosen and the rejected answer under the reference model.
    """

    def __init__(self, settings: Dpo, reference: Tensor) -> None:
        self._settings, self._reference = settings, reference

    def __call__(self, split: SplitModel, batch: Batch) -> tuple[Tensor, Metrics]:
        """Return the loss summed over the pairs."""
        policy_2P = sequence_log_probabilities(split, batch)
        chosen_P, rejected_P = policy_2P.chunk(2)
        reference_P2 = self._reference[torch.from_numpy(batch.rows)].to(policy_2P.device)
        chosen_ratio_P = chosen_P - reference_P2[:, 0]
        rejected_ratio_P = rejected_P - reference_P2[:, 1]
        lengths_2P = torch.bincount(batch.sequence_N, minlength=batch.num_sequences).clamp(min=1)
        losses_P = preference_losses(self._settings, chosen_ratio_P, rejected_ratio_P, lengths_2P)
        with torch.no_grad():
            margins_P = self._settings.beta * (chosen_ratio_P - rejected_ratio_P)
            metrics = {"reward_margin": margins_P.sum(), "reward_accuracy": (margins_P > 0).sum()}
        return losses_P.sum(), metrics


def preference_losses(dpo: Dpo, chosen_ratio_P: Tensor, rejected_ratio_P: Tensor, lengths_2P: Tensor) -> Tensor:
    """Return the loss of each pair from the log-ratios policy : reference of its answers.

    sigmoid: Rafailov et al. 2023, equation 7; label smoothing after Mitchell 2023 (conservative DPO).
    hinge:   Zhao et al. 2023 (SLiC-HF), with the margin in units of β.
    ipo:     Azar et al. 2023, equation 17, on log-ratios per token, as TRL does
             (https://github.com/huggingface/trl/blob/v1.0.0/trl/trainer/dpo_trainer.py).
    """
    beta = dpo.beta
    margin_P = chosen_ratio_P - rejected_ratio_P
    if dpo.loss_type == "hinge":
        return functional.relu(1 - beta * margin_P)
    if dpo.loss_type == "ipo":
        chosen_length_P, rejected_length_P = lengths_2P.chunk(2)
        per_token_P = chosen_ratio_P / chosen_length_P - rejected_ratio_P / rejected_length_P
        return (per_token_P - 1 / (2 * beta)) ** 2
    smoothing = dpo.label_smoothing
    right_P, wrong_P = functional.logsigmoid(beta * margin_P), functional.logsigmoid(-beta * margin_P)
    return -(1 - smoothing) * right_P - smoothing * wrong_P


def sequence_log_probabilities(split: SplitModel, batch: Batch) -> Tensor:
    """Return log p of the trained tokens of each sequence, (sequences,)."""
    losses_N = token_losses(split, batch)
    return -losses_N.new_zeros(batch.num_sequences).index_add(0, batch.sequence_N, losses_N)


def token_losses(split: SplitModel, batch: Batch) -> Tensor:
    """Return the cross-entropy of each trained token in float32, (N,). Logits exist for a chunk of them at a time."""
    hidden_BTH = split.hidden(batch.ids_BT, batch.positions_BT)
    hidden_NH = hidden_BTH.reshape(-1, hidden_BTH.shape[-1])[batch.select_N]
    if not split.head_is_trained:
        losses_N: Tensor = _FrozenHead.apply(hidden_NH, batch.targets_N, split)
        return losses_N
    pieces = zip(_chunks(hidden_NH, split), _chunks(batch.targets_N, split), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(_losses, h, t, split, use_reentrant=False) for h, t in pieces])
    return torch.cat([_losses(h, t, split) for h, t in pieces])


def _losses(hidden_NH: Tensor, targets_N: Tensor, split: SplitModel) -> Tensor:
    return functional.cross_entropy(split.logits(hidden_NH), targets_N, reduction="none")


def _chunks(values_N: Tensor, split: SplitModel) -> tuple[Tensor, ...]:
    """Cut along N so that one chunk's logits take LOGITS_CHUNK_BYTES."""
    size = max(16, LOGITS_CHUNK_BYTES // (4 * split.vocab_size))
    return values_N.split(size) if len(values_N) else (values_N,)


class _FrozenHead(torch.autograd.Function):
    """Losses of a head that does not move: gradients of the hidden states are made together with the losses.

    Positions do not meet each other in the head, so each position's gradient is known up to the factor that arrives in
    the backward pass. Nothing of a chunk's logits outlives it.
    """

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, targets_N: Tensor, split: SplitModel) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        losses, gradients = [], []
        for hidden_CH, targets_C in zip(_chunks(hidden_NH, split), _chunks(targets_N, split), strict=True):
            if not wanted:
                losses.append(_losses(hidden_CH, targets_C, split))
                continue
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
