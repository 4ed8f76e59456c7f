"""Hidden states and the output head apart, so that logits are made only where they are needed.

Shapes: B rows, T tokens, H hidden size, N chosen positions, V vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.model.attention import NAME, Spans, register
from tunesmith.model.families import family_of
from tunesmith.model.first_layers import first_layers


@dataclass(frozen=True)
class SplitModel:
    """A causal language model as two functions.

    Attributes:
        hidden: (ids_BT, positions_BT or None, spans or None) -> hidden_BTH, without attention mask and cache. Rows
            padded on the right are right for every real token, since attention is causal.
        logits: hidden_NH -> logits_NV in float32, with what the family does to them.
        plain_head: the head, when logits are its product and nothing else; None otherwise.
        head_is_trained: whether the head's weights have gradients.
        over_spans: whether `split` has switched it to attention over spans.
    """

    model: Any
    hidden: Callable[[Tensor, Tensor | None, Spans | None], Tensor]
    logits: Callable[[Tensor], Tensor]
    plain_head: nn.Linear | None
    head_is_trained: bool
    vocab_size: int
    over_spans: bool = False


def split(model: Any, *, over_spans: bool = False) -> SplitModel:
    """Take a model apart, and check on a few tokens that the parts give the model's own logits.

    A model whose parts do not (its family does something of its own after the head) computes all logits instead, which
    is right and slower.

    Args:
        over_spans: switch the model to attention over spans too, where one look shows that both are right. Where it
            does not, `use_spans` can still look closer.
    """
    head = model.get_output_embeddings()
    vocab_size = int(model.config.get_text_config().vocab_size)
    if head is not None:
        parts = _parts(model, head, vocab_size)
        shown = _shown_by_first_layers(parts, over_spans) or _shown(parts, over_spans)
        if shown is not None:
            return shown

    def whole(ids_BT: Tensor, positions_BT: Tensor | None, spans: Spans | None) -> Tensor:
        return model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False, **_given(spans)).logits

    trained = any(p.requires_grad for p in model.parameters())
    return SplitModel(model, whole, Tensor.float, None, trained, vocab_size)


def _shown(parts: SplitModel, over_spans: bool) -> SplitModel | None:
    """Return the parts as far as one look shows them to be right; None when not even they are."""
    rows_BT, real_BT = _probe_batch(parts)
    model = parts.model
    with contextlib.suppress(AttributeError, TypeError, ValueError):  # no such part, or one with other arguments
        theirs_PV = _in_evaluation(model, lambda: model(input_ids=rows_BT, use_cache=False).logits[real_BT].float())
        if over_spans and _right_over_spans(parts, lambda found: _give(parts, found, _told_once(theirs_PV))):
            return dataclasses.replace(parts, over_spans=True)
        if _give(parts, _states(parts, rows_BT, None, None)[real_BT], theirs_PV):
            return parts
    return None


def _shown_by_first_layers(parts: SplitModel, over_spans: bool) -> SplitModel | None:
    """Return what a look at each kind of layer shows, if that is all that was asked; else None, for a whole look."""
    with contextlib.suppress(LookupError, RuntimeError, AttributeError), first_layers(parts.model) as fewer:
        shown = _shown(parts, over_spans) if fewer else None
        return shown if shown is not None and shown.over_spans == over_spans else None
    return None


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
def _give(parts: SplitModel, states_PH: Tensor, theirs_PV: Tensor) -> bool:
    """Return whether the head makes the model's own logits of states."""
    ours_PV = parts.logits(states_PH)
    scale = theirs_PV.abs().max().clamp(min=1.0)
    tolerance = 1e-4 if next(parts.model.parameters()).dtype == torch.float32 else 2e-2
    return ours_PV.shape == theirs_PV.shape and bool((ours_PV - theirs_PV).abs().max() <= tolerance * scale)


def keeps_packed_rows_apart(parts: SplitModel) -> bool:
    """Return whether rows put one after another, with positions that restart, give the states of rows alone.

    Not every architecture does: a recurrent layer carries its state across, and some read positions otherwise.
    """
    rows = _probe_pieces(parts)
    positions_BT = torch.cat([torch.arange(len(row), device=row.device) for row in rows]).view(1, -1)
    alone = torch.cat([_states(parts, row.view(1, -1), None, None)[0] for row in rows])
    return _alike(parts, _states(parts, torch.cat(rows).view(1, -1), positions_BT, None)[0], alone)


def use_spans(parts: SplitModel) -> bool:
    """Switch a model to attention over spans, and return whether it gives the states of rows alone there.

    The reference is the model's own attention. A model that does something else in or around its attention (caps its
    scores, carries a state, cuts the row into chunks of its own) keeps that attention.
    """
    if parts.over_spans:
        return True
    rows_BT, real_BT = _probe_batch(parts)
    expected_PH = _told_once(_states(parts, rows_BT, None, None)[real_BT])
    return _right_over_spans(parts, lambda found_PH: _alike(parts, found_PH, expected_PH))


def _right_over_spans(parts: SplitModel, is_right: Callable[[Tensor], bool]) -> bool:
    """Switch a model to attention over spans, and back unless the states that it then gives the pieces are right."""
    config = parts.model.config.get_text_config()
    if getattr(config, "attention_chunk_size", None):
        return False
    pieces = _probe_pieces(parts)
    begun, first, second, other = _PROBES
    alone, end = begun + first, begun + first + second  # where the second row goes on, and ends
    begins = (0, begun, begun, 0)
    positions = [torch.arange(n, n + len(row), device=row.device) for n, row in zip(begins, pieces, strict=True)]
    places = [np.r_[:alone], np.r_[:begun, alone:end], np.r_[end : end + other]]
    spans = Spans.of(places, [0, begun, 0], pieces[0].device)
    before = config._attn_implementation
    register()
    parts.model.set_attn_implementation(NAME)
    # Some ask for what these kernels do not do, or take no spans.
    with contextlib.suppress(ValueError, TypeError, RuntimeError, AttributeError):
        found = _states(parts, torch.cat(pieces).view(1, -1), torch.cat(positions).view(1, -1), spans)[0]
        if is_right(found):
            return True
    parts.model.set_attn_implementation(before)
    return False


_PROBES = (4, 2, 3, 5)  # tokens of: what two rows begin with, how each goes on, a row of its own


def _probe_pieces(parts: SplitModel) -> list[Tensor]:
    device = parts.model.get_input_embeddings().weight.device
    steps = range(5, 5 + 2 * len(_PROBES), 2)
    return [
        torch.arange(length, device=device) * step % parts.vocab_size
        for length, step in zip(_PROBES, steps, strict=True)
    ]


def _probe_batch(parts: SplitModel) -> tuple[Tensor, Tensor]:
    """Return the three rows that the pieces make, padded on the right, and which positions are real, (B, T) each."""
    begun, first, second, other = _probe_pieces(parts)
    rows = [torch.cat([begun, first]), torch.cat([begun, second]), other]
    ids_BT = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths_B = torch.tensor([len(row) for row in rows], device=ids_BT.device)
    return ids_BT, torch.arange(ids_BT.shape[1], device=ids_BT.device)[None, :] < lengths_B[:, None]


def _told_once(values_P: Tensor) -> Tensor:
    """Leave out what the second row repeats of the first: pieces side by side have it once."""
    begun, first, *_ = _PROBES
    return torch.cat([values_P[: begun + first], values_P[begun + first + begun :]])


def _states(parts: SplitModel, ids_BT: Tensor, positions_BT: Tensor | None, spans: Spans | None) -> Tensor:
    return _in_evaluation(parts.model, lambda: parts.hidden(ids_BT, positions_BT, spans))


@torch.no_grad()
def _in_evaluation(model: Any, compute: Callable[[], Tensor]) -> Tensor:
    was_training = model.training
    model.eval()
    try:
        return compute()
    finally:
        model.train(was_training)


def _alike(parts: SplitModel, found: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-4 if next(parts.model.parameters()).dtype == torch.float32 else 5e-2
    return bool((found.float() - expected.float()).abs().max() <= tolerance * expected.float().abs().max())
