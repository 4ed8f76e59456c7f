"""Hidden states and the output head apart, so that logits are made only where they are needed.

Shapes: B rows, T tokens, H hidden size, N chosen positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.model.attention import NAME, Spans, register
from tunesmith.model.families import family_of


@dataclass(frozen=True)
class SplitModel:
    """A causal language model as two functions.

    Attributes:
        hidden: (ids_BT, positions_BT or None, spans or None) -> hidden_BTH, without attention mask and cache. Rows
            padded on the right are right for every real token, since attention is causal.
        logits: hidden_NH -> logits_NV in float32, with what the family does to them.
        plain_head: the head, when logits are its product and nothing else; None otherwise.
        head_is_trained: whether the head's weights have gradients.
    """

    model: Any
    hidden: Callable[[Tensor, Tensor | None, Spans | None], Tensor]
    logits: Callable[[Tensor], Tensor]
    plain_head: nn.Linear | None
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

    def whole(ids_BT: Tensor, positions_BT: Tensor | None, spans: Spans | None) -> Tensor:
        return model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False, **_given(spans)).logits

    trained = any(p.requires_grad for p in model.parameters())
    return SplitModel(model, whole, Tensor.float, None, trained, vocab_size)


def _given(spans: Spans | None) -> dict[str, Spans]:
    return {} if spans is None else {"spans": spans}


def _parts(model: Any, head: Any, vocab_size: int) -> SplitModel:
    decoder = model.get_decoder()
    config = model.config.get_text_config()
    family = family_of(config.model_type)
    multiplier = float(getattr(config, family.logits_multiplied_by or "", 1.0))
    multiplier /= float(getattr(config, family.logits_divided_by or "", 1.0))
    cap = getattr(config, "final_logit_softcapping", None)

    def hidden(ids_BT: Tensor, positions_BT: Tensor | None, spans: Spans | None) -> Tensor:
        output = decoder(input_ids=ids_BT, position_ids=positions_BT, use_cache=False, **_given(spans))
        return output.last_hidden_state

    def logits(hidden_NH: Tensor) -> Tensor:
        logits_NV: Tensor = head(hidden_NH).float()
        if multiplier != 1.0:
            logits_NV = logits_NV * multiplier
        return torch.tanh(logits_NV / cap) * cap if cap else logits_NV

    plain = head if multiplier == 1.0 and not cap and type(head) is nn.Linear and head.bias is None else None
    return SplitModel(model, hidden, logits, plain, any(p.requires_grad for p in head.parameters()), vocab_size)


@torch.no_grad()
def _agree(model: Any, parts: SplitModel) -> bool:
    device = model.get_input_embeddings().weight.device
    ids_BT = (torch.arange(12, device=device) * 7 % parts.vocab_size).view(1, -1)
    was_training = model.training
    model.eval()
    try:
        theirs = model(input_ids=ids_BT, use_cache=False).logits[0].float()
        ours = parts.logits(parts.hidden(ids_BT, None, None)[0])
    except (AttributeError, TypeError, ValueError):  # no such part, or one that takes other arguments
        return False
    finally:
        model.train(was_training)
    scale = theirs.abs().max().clamp(min=1.0)
    tolerance = 1e-4 if next(model.parameters()).dtype == torch.float32 else 2e-2
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= tolerance * scale)


def keeps_packed_rows_apart(parts: SplitModel) -> bool:
    """Return whether rows put one after another, with positions that restart, give the states of rows alone.

    Not every architecture does: a recurrent layer carries its state across, and some read positions otherwise.
    """
    rows = _probe_rows(parts, (9, 14))
    positions_BT = torch.cat([torch.arange(len(row), device=row.device) for row in rows]).view(1, -1)
    alone = torch.cat([_states(parts, row, None, None) for row in rows])
    return _alike(parts, _states(parts, torch.cat(rows), positions_BT, None), alone)


def use_spans(parts: SplitModel) -> bool:
    """Switch a model to attention over spans, and return whether it gives the states of rows alone there.

    The reference is the model's own attention. A model that does something else in or around its attention (caps its
    scores, carries a state, cuts the row into chunks of its own) keeps that attention.
    """
    config = parts.model.config.get_text_config()
    if getattr(config, "attention_chunk_size", None):
        return False
    begun, first, second, other = _probe_rows(parts, (9, 5, 8, 14))
    alone = [torch.cat([begun, first]), torch.cat([begun, second]), other]
    expected = [_states(parts, row, None, None) for row in alone]
    expected[1] = expected[1][len(begun) :]
    ends = [0, len(begun), len(begun), 0]
    pieces = (begun, first, second, other)
    positions = [torch.arange(len(row), device=row.device) + end for row, end in zip(pieces, ends, strict=True)]
    places = [np.arange(14), np.concatenate([np.arange(9), np.arange(14, 22)]), np.arange(22, 36)]
    spans = Spans.of(places, [0, 9, 0], begun.device)
    before = config._attn_implementation
    register()
    parts.model.set_attn_implementation(NAME)
    try:
        found = _states(parts, torch.cat(pieces), torch.cat(positions).view(1, -1), spans)
    except (
        ValueError,
        TypeError,
        RuntimeError,
        AttributeError,
    ):  # asks for what these kernels do not do, or takes no spans
        found = None
    if found is not None and _alike(parts, found, torch.cat(expected)):
        return True
    parts.model.set_attn_implementation(before)
    return False


def _probe_rows(parts: SplitModel, lengths: tuple[int, ...]) -> list[Tensor]:
    device = parts.model.get_input_embeddings().weight.device
    steps = range(5, 5 + 2 * len(lengths), 2)
    return [
        torch.arange(length, device=device) * step % parts.vocab_size
        for length, step in zip(lengths, steps, strict=True)
    ]


@torch.no_grad()
def _states(parts: SplitModel, ids_T: Tensor, positions_BT: Tensor | None, spans: Spans | None) -> Tensor:
    was_training = parts.model.training
    parts.model.eval()
    try:
        return parts.hidden(ids_T.view(1, -1), positions_BT, spans)[0].float()
    finally:
        parts.model.train(was_training)


def _alike(parts: SplitModel, found: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-4 if next(parts.model.parameters()).dtype == torch.float32 else 5e-2
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())
