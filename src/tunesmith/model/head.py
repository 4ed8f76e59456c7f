"""Hidden states and the output head apart, so that logits are made only where they are needed.

Shapes: B rows, T tokens, H hidden size, N chosen positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.model.families import family_of


@dataclass(frozen=True)
class SplitModel:
    """A causal language model as two functions.

    Attributes:
        hidden: (ids_BT, positions_BT or None) -> hidden_BTH, without attention mask and cache. Rows padded on the right
            are right for every real token, since attention is causal.
        logits: hidden_NH -> logits_NV in float32, with what the family does to them.
        head_is_trained: whether the head's weights have gradients.
    """

    model: Any
    hidden: Callable[[Tensor, Tensor | None], Tensor]
    logits: Callable[[Tensor], Tensor]
    head_is_trained: bool
    vocab_size: int


def split(model: Any) -> SplitModel:
    """Take a model apart, and check on a few tokens that the parts give the model's own logits.

    A model whose parts do not (its family does something of its own after the head) computes all logits instead, which
    is right and slower.
    """
    head = model.get_output_embeddings()
    vocab_size = int(model.config.get_text_config().vocab_size)
    if head is not None:
        parts = _parts(model, head, vocab_size)
        if _agree(model, parts):
            return parts

    def whole(ids_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
        return model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).logits

    trained = any(p.requires_grad for p in model.parameters())
    return SplitModel(model, whole, Tensor.float, trained, vocab_size)


def _parts(model: Any, head: Any, vocab_size: int) -> SplitModel:
    decoder = model.get_decoder()
    config = model.config.get_text_config()
    family = family_of(config.model_type)
    multiplier = float(getattr(config, family.logits_multiplied_by or "", 1.0))
    multiplier /= float(getattr(config, family.logits_divided_by or "", 1.0))
    cap = getattr(config, "final_logit_softcapping", None)

    def hidden(ids_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
        return decoder(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).last_hidden_state

    def logits(hidden_NH: Tensor) -> Tensor:
        logits_NV: Tensor = head(hidden_NH).float()
        if multiplier != 1.0:
            logits_NV = logits_NV * multiplier
        return torch.tanh(logits_NV / cap) * cap if cap else logits_NV

    return SplitModel(model, hidden, logits, any(p.requires_grad for p in head.parameters()), vocab_size)


@torch.no_grad()
def _agree(model: Any, parts: SplitModel) -> bool:
    device = model.get_input_embeddings().weight.device
    ids_BT = (torch.arange(12, device=device) * 7 % parts.vocab_size).view(1, -1)
    was_training = model.training
    model.eval()
    try:
        theirs = model(input_ids=ids_BT, use_cache=False).logits[0].float()
        ours = parts.logits(parts.hidden(ids_BT, None)[0])
    except (AttributeError, TypeError, ValueError):  # no such part, or one that takes other arguments
        return False
    finally:
        model.train(was_training)
    scale = theirs.abs().max().clamp(min=1.0)
    tolerance = 1e-4 if next(model.parameters()).dtype == torch.float32 else 2e-2
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= tolerance * scale)


@torch.no_grad()
def keeps_packed_rows_apart(parts: SplitModel) -> bool:
    """Return whether rows put one after another, with positions that restart, give the states of rows alone.

    Not every architecture does: a recurrent layer carries its state across, and some read positions otherwise.
    """
    model = parts.model
    device = model.get_input_embeddings().weight.device
    rows = [torch.arange(length, device=device) * step % parts.vocab_size for length, step in ((9, 5), (14, 11))]
    was_training = model.training
    model.eval()
    try:
        alone = torch.cat([parts.hidden(row.view(1, -1), None)[0] for row in rows]).float()
        positions_BT = torch.cat([torch.arange(len(row), device=device) for row in rows]).view(1, -1)
        packed = parts.hidden(torch.cat(rows).view(1, -1), positions_BT)[0].float()
    finally:
        model.train(was_training)
    tolerance = 1e-4 if next(model.parameters()).dtype == torch.float32 else 5e-2
    return bool((alone - packed).abs().max() <= tolerance * alone.abs().max())
