"""What is optimised: a function of (token losses, micro-batch) that returns (sum of losses, metrics as sums).

The loop divides both by the count of the whole global batch: trained tokens for `sft`, pairs for `dpo`. One rule for
gradient accumulation, packing and ranks.

Shapes: N positions with a loss, H hidden size, V vocabulary, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from tunesmith.recipe.schema import Dpo
from tunesmith.train.batches import Batch
from tunesmith.train.token_losses import TokenLosses

Metrics = dict[str, Tensor]
Objective = Callable[[TokenLosses, Batch], tuple[Tensor, Metrics]]
METRICS = {"sft": (), "dpo": ("reward_accuracy", "reward_margin")}  # their names, in an order that all ranks know


def sft(losses: TokenLosses, batch: Batch) -> tuple[Tensor, Metrics]:
    """Return the cross-entropy summed over the trained tokens."""
    return losses(batch, summed=True), {}


class DpoObjective:
    """Direct preference optimisation.

    Args:
        reference: (token losses, micro-batch) -> log-probability of the chosen and the rejected answer of its rows
            under the reference model, (P, 2).
    """

    def __init__(self, settings: Dpo, reference: Callable[[TokenLosses, Batch], Tensor]) -> None:
        self._settings, self._reference = settings, reference

    def __call__(self, losses: TokenLosses, batch: Batch) -> tuple[Tensor, Metrics]:
        """Return the loss summed over the pairs."""
        reference_P2 = self._reference(losses, batch)
        policy_2P = sequence_log_probabilities(losses, batch)
        chosen_P, rejected_P = policy_2P.chunk(2)
        reference_P2 = reference_P2.to(policy_2P.device)
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


def sequence_log_probabilities(losses: TokenLosses, batch: Batch) -> Tensor:
    """Return log p of the trained tokens of each sequence, (sequences,)."""
    losses_N = losses(batch)
    return -losses_N.new_zeros(batch.num_sequences).index_add(0, batch.sequence_N, losses_N)
