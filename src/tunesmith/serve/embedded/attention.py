"""Attention of one step over the slots, under a name of its own in transformers' attention interface.

Single tokens of all rows go through one call: the heads that share a key head become queries of that head, so keys are
neither repeated nor copied. Each stretch of a prompt has a call of its own: it sees its slot up to itself.

Shapes: T tokens of the step, R rows with a single token, H heads, K key-value heads, G heads per key-value head,
C columns, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tunesmith.serve.embedded.slots import Step

NAME = "tunesmith_slots"


def attend(
    module: Any,
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Write a step's keys and values into their slots; return (1, T, H, D). See transformers' `AttentionInterface`.

    Args:
        settings: `step`, `sliding_window`, `softcap` and `s_aux`, the sinks; others change nothing here.
    """
    step: Step = settings["step"]
    sliding_window: int | None = settings.get("sliding_window")
    softcap, s_aux = settings.get("softcap"), settings.get("s_aux")
    keys, values = step.slots.layer(module.layer_idx, key_1KTD)
    scale = query_1HTD.shape[-1] ** -0.5 if scaling is None else scaling
    extra = (softcap, s_aux)
    parts: list[Tensor] = []
    at = step.num_single
    if at:
        # Rows and positions are index tensors, hence the heads come second: (R, K, D).
        keys[step.rows_R, :, step.positions_R] = key_1KTD[0, :, :at].transpose(0, 1)
        values[step.rows_R, :, step.positions_R] = value_1KTD[0, :, :at].transpose(0, 1)
        parts.append(_singles(query_1HTD[0, :, :at], keys, values, step, sliding_window, scale, extra))
    for slot, begin, length in step.chunks:
        end = begin + length
        keys[slot, :, begin:end] = key_1KTD[0, :, at : at + length]
        values[slot, :, begin:end] = value_1KTD[0, :, at : at + length]
        first = 0 if sliding_window is None else max(0, begin + 1 - sliding_window)
        query, key, value = (
            query_1HTD[:, :, at : at + length],
            keys[slot, None, :, first:end],
            values[slot, None, :, first:end],
        )
        parts.append(_stretch(query, key, value, sliding_window, scale, extra))
        at += length
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None], None


Extra = tuple[float | None, Tensor | None]


def _singles(
    query_HRD: Tensor, keys: Tensor, values: Tensor, step: Step, window: int | None, scale: float, extra: Extra
) -> Tensor:
    num_heads, num_rows, size = query_HRD.shape
    query_RKGD = query_HRD.transpose(0, 1).reshape(num_rows, keys.shape[1], -1, size)
    first, mask = step.mask(window, query_HRD.dtype)
    key_RKCD, value_RKCD = keys[:num_rows, :, first : step.longest], values[:num_rows, :, first : step.longest]
    if extra != (None, None):
        out = _plain(query_RKGD, key_RKCD, value_RKCD, mask, scale, extra)
    else:
        out = functional.scaled_dot_product_attention(query_RKGD, key_RKCD, value_RKCD, attn_mask=mask, scale=scale)
    return out.reshape(num_rows, num_heads, size)


def _stretch(q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float, extra: Extra) -> Tensor:
    """Return (T, H, D): queries (1, H, T, D) that are the last positions of keys (1, K, C, D)."""
    num_queries, num_keys = q.shape[2], k.shape[2]
    mask: Tensor | None = None
    if num_queries != num_keys or (window is not None and num_keys > window) or extra != (None, None):
        at = torch.arange(num_keys - num_queries, num_keys, device=q.device)[:, None]
        columns = torch.arange(num_keys, device=q.device)[None]
        mask = columns <= at if window is None else (columns <= at) & (columns > at - window)
    if extra == (None, None):
        grouped = q.shape[1] != k.shape[1]
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
        )
        return out[0].transpose(0, 1)
    assert mask is not None
    added = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, float("-inf"))
    repeats = q.shape[1] // k.shape[1]
    # (T, K, G, D): positions take the place of rows, so that one plain form serves both.
    query_TKGD = q[0].transpose(0, 1).reshape(num_queries, k.shape[1], repeats, -1)
    return _plain(query_TKGD, k, v, added[:, None, None], scale, extra).reshape(num_queries, q.shape[1], -1)


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, extra: Extra) -> Tensor:
    """Return attention written out, for models that squash their scores (Gemma 2) or have a sink per head (gpt-oss).

    Query (R, K, G, D), keys and values (R or 1, K, C, D), mask (R, 1, 1, C).
    """
    softcap, sinks_H = extra
    scores = torch.matmul(query, key.transpose(-1, -2)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    if sinks_H is not None:
        sinks = sinks_H.reshape(1, scores.shape[1], scores.shape[2], 1).expand(scores.shape[0], -1, -1, -1)
        scores = torch.cat([scores, sinks.to(scores.dtype)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    if sinks_H is not None:
        weights = weights[..., :-1]
    return torch.matmul(weights, value)


def register() -> None:
    """Make `attend` known to transformers. A model builds no mask for an attention that has no mask function."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
