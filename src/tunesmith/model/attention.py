"""Attention over packed rows, under a name of its own in transformers' attention interface.

Sequences lie one after another in one row without padding. What two of them begin with lies there once: `Spans` says of
each where its tokens lie. So a system prompt that many rows have, or the prompt of a preference pair, is computed once,
exactly: its positions see nothing that comes later, and what follows sees the same keys and values as if it stood alone
behind it.

On CUDA the row goes to PyTorch's variable-length flash attention in one call, with shared keys repeated for everyone
who reads them (Wang & Hegde 2024, arXiv:2410.20305, have the same idea for pairs as a block mask). Elsewhere every
sequence gets a call of its own: nothing outside its own triangle is computed.

Shapes: H heads, T positions of the row, D head size; S sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from tunesmith.model.recomputed import kept_elsewhere

NAME = "tunesmith_spans"

Places = npt.NDArray[np.int64]
Masks = dict[tuple[int, int, int | None], Tensor]


@dataclass(frozen=True)
class Spans:
    """The sequences of a packed row.

    Attributes:
        pieces: the row cut wherever a sequence begins and wherever one leaves another: lengths, in order.
        paths: the pieces that make up each sequence, in order; shared ones come first.
        num_shared: how many pieces of a path lie in the row for an earlier sequence already.
        cu_q_S1, cu_k_S1: where each sequence's own queries and its keys begin, and where the last one ends, int32.
        keys_K: positions whose keys are read, one sequence after another; None when nothing is shared.
        masks: those that the layers of this row have needed so far, by queries, keys and window.
    """

    pieces: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]
    num_shared: tuple[int, ...]
    cu_q_S1: Tensor
    cu_k_S1: Tensor
    keys_K: Tensor | None
    longest_q: int
    longest_k: int
    masks: Masks = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, places: list[Places], shared: list[int], device: torch.device) -> Spans:
        """Describe a row.

        Args:
            places: where each sequence's tokens lie; what comes after its first `shared` tokens lies right behind the
                sequence before it.
        """
        own = [len(at) - skip for at, skip in zip(places, shared, strict=True)]
        total = sum(own)
        leaves = {int(at[skip - 1]) + 1 for at, skip in zip(places, shared, strict=True) if skip}
        begins = np.array(sorted({0, *accumulate(own)} - {total} | leaves - {total}), dtype=np.int64)
        paths = [np.flatnonzero(np.bincount(np.searchsorted(begins, at, side="right") - 1)) for at in places]
        keys = [len(at) for at in places]
        return cls(
            pieces=tuple(np.diff(begins, append=total).tolist()),
            paths=tuple(tuple(path.tolist()) for path in paths),
            num_shared=tuple(
                int(np.searchsorted(begins[path], at[skip], side="right")) - 1
                for path, at, skip in zip(paths, places, shared, strict=True)
            ),
            cu_q_S1=torch.tensor([0, *accumulate(own)], dtype=torch.int32).to(device, non_blocking=True),
            cu_k_S1=torch.tensor([0, *accumulate(keys)], dtype=torch.int32).to(device, non_blocking=True),
            keys_K=torch.from_numpy(np.concatenate(places)).to(device, non_blocking=True) if any(shared) else None,
            longest_q=max(own),
            longest_k=max(keys),
        )


def attend(
    module: Any,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Return the attention of every sequence, (B, T, H, D), causal within it. See transformers' `AttentionInterface`.

    Args:
        settings: `spans` of a packed row (without it every row of the batch is one sequence), `sliding_window`, and
            what else a model passes.

    Raises:
        ValueError: the model asks for something that these kernels do not compute.
    """
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if settings.get(name) is not None]
    if unknown or attention_mask is not None or settings.get("dropout"):
        raise ValueError(f"this model's attention needs {', '.join(unknown) or 'a mask or dropout'}")
    window: int | None = settings.get("sliding_window")
    spans: Spans | None = settings.get("spans")
    qkv = (query_BHTD, key_BHTD, value_BHTD)
    if spans is None:
        return _one(*qkv, scaling, window, {}).transpose(1, 2), None
    if query_BHTD.is_cuda and query_BHTD.dtype != torch.float32 and _has_varlen():
        return _varlen(*qkv, spans, scaling, window), None
    return _one_by_one(*qkv, spans, scaling, window), None


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, spans: Spans, scaling: float | None, window: int | None) -> Tensor:
    """Return the attention of one sequence after another, (B, T, H, D)."""
    q_pieces, k_pieces, v_pieces = (tensor.split(spans.pieces, dim=2) for tensor in (q, k, v))
    out: list[Tensor] = []
    with kept_elsewhere() as lies:
        for path, num_shared in zip(spans.paths, spans.num_shared, strict=True):
            keys, values = _joined(k_pieces, path), _joined(v_pieces, path)
            queries = _joined(q_pieces, path[num_shared:])
            num_own = queries.shape[2]
            # Behind a beginning that is no longer than itself, a sequence costs less as a whole triangle than as a
            # rectangle: that one needs a mask, and none of it is skipped.
            if num_shared and keys.shape[2] - num_own <= num_own:
                queries = _joined(q_pieces, path)
            out.append(_one(queries, keys, values, scaling, window, spans.masks).transpose(1, 2)[:, -num_own:])
        joined = torch.cat(out, dim=1)
        for made, place in zip(out, joined.split([piece.shape[1] for piece in out], dim=1), strict=True):
            lies(made.transpose(1, 2), place.transpose(1, 2))
    return joined


def _joined(pieces: tuple[Tensor, ...], path: tuple[int, ...]) -> Tensor:
    return pieces[path[0]] if len(path) == 1 else torch.cat([pieces[number] for number in path], dim=2)


def _one(q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None, masks: Masks) -> Tensor:
    """Return the attention of queries that are the last of their sequence's positions."""
    shape = (q.shape[2], k.shape[2])
    needed = shape[0] != shape[1] or (window is not None and shape[1] > window)
    mask = _mask(shape, window, q, masks) if needed else None
    attended: Tensor = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )
    return attended


def _mask(shape: tuple[int, int], window: int | None, like: Tensor, masks: Masks) -> Tensor:
    """Return what is added to the scores: numbers rather than flags, which every layer would turn into its own copy."""
    num_queries, num_keys = shape
    if (*shape, window) not in masks:
        at = torch.arange(num_keys - num_queries, num_keys, device=like.device)[:, None]
        seen = torch.arange(num_keys, device=like.device)[None, :]
        hidden = seen > at if window is None else (seen > at) | (seen <= at - window)
        masks[*shape, window] = torch.zeros(shape, dtype=like.dtype, device=like.device).masked_fill_(
            hidden, -torch.inf
        )
    return masks[*shape, window]


def _varlen(q: Tensor, k: Tensor, v: Tensor, spans: Spans, scaling: float | None, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q_THD, k_THD, v_THD = (tensor[0].transpose(0, 1) for tensor in (q, k, v))
    if spans.keys_K is not None:
        k_THD, v_THD = k_THD[spans.keys_K], v_THD[spans.keys_K]
    if not _varlen_groups_heads() and k_THD.shape[1] != q_THD.shape[1]:
        repeats = q_THD.shape[1] // k_THD.shape[1]
        k_THD, v_THD = (tensor.repeat_interleave(repeats, dim=1) for tensor in (k_THD, v_THD))
    more = {"enable_gqa": True} if _varlen_groups_heads() else {}
    left = -1 if window is None else window - 1
    out_THD: Tensor = varlen_attn(
        q_THD.contiguous(), k_THD.contiguous(), v_THD.contiguous(),
        spans.cu_q_S1, spans.cu_k_S1, spans.longest_q, spans.longest_k,
        scale=scaling, window_size=(left, 0), **more,
    )  # fmt: skip
    return out_THD[None]


@cache
def _has_varlen() -> bool:
    """Return whether this PyTorch (2.11 on) has variable-length attention with windows, whose causal form we need."""
    import inspect

    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters


@cache
def _varlen_groups_heads() -> bool:
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def register() -> None:
    """Make `attend` known to transformers. Models without a mask function of that name build no mask at all."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
