"""Attention over packed rows, under a name of its own in transformers' attention interface.

Sequences lie one after another in one row without padding; `Spans` says which of them belong together. A group is a
trunk, and branches that each see the trunk and themselves but not each other: an ordinary sequence is a trunk alone, a
preference pair is its prompt with two answers. So a shared prompt is computed once, exactly: its positions see nothing
that comes later, and the branches see the same keys and values as if they stood alone behind it.

On CUDA the row goes to PyTorch's variable-length flash attention in one call, with the trunk's keys repeated for the
second branch (Wang & Hegde 2024, arXiv:2410.20305, have the same idea as a block mask). Elsewhere every sequence gets a
call of its own: nothing outside its own triangle is computed.

Shapes: H heads, T positions of the row, D head size; S sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

NAME = "tunesmith_spans"


@dataclass(frozen=True)
class Spans:
    """The sequences of a packed row.

    Attributes:
        groups: (trunk length, branch lengths…) of each group, in the order in which they lie; a group's branches follow
            its trunk.
        cu_q_S1, cu_k_S1: where each sequence's queries and keys begin, and where the last one ends, int32; the first
            branch is part of its trunk's sequence, every further one is a sequence of its own.
        keys_K: positions whose keys are read, when trunks are repeated; None when they are read as they lie.
    """

    groups: tuple[tuple[int, ...], ...]
    cu_q_S1: Tensor
    cu_k_S1: Tensor
    keys_K: Tensor | None
    longest_q: int
    longest_k: int

    @classmethod
    def of(cls, groups: list[tuple[int, ...]], device: torch.device) -> Spans:
        queries, keys, index = list[int](), list[int](), list[Tensor]()
        begin = 0
        for trunk, *branches in groups:
            first = trunk + (branches[0] if branches else 0)
            queries.append(first)
            keys.append(first)
            index.append(torch.arange(begin, begin + first))
            branch_begin = begin + first
            for branch in branches[1:]:
                queries.append(branch)
                keys.append(trunk + branch)
                index += [torch.arange(begin, begin + trunk), torch.arange(branch_begin, branch_begin + branch)]
                branch_begin += branch
            begin = branch_begin
        repeated = sum(keys) > begin
        return cls(
            groups=tuple(groups),
            cu_q_S1=torch.tensor([0, *accumulate(queries)], dtype=torch.int32).to(device, non_blocking=True),
            cu_k_S1=torch.tensor([0, *accumulate(keys)], dtype=torch.int32).to(device, non_blocking=True),
            keys_K=torch.cat(index).to(device, non_blocking=True) if repeated else None,
            longest_q=max(queries),
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
        return _one(*qkv, scaling, window).transpose(1, 2), None
    if query_BHTD.is_cuda and query_BHTD.dtype != torch.float32 and _has_varlen():
        return _varlen(*qkv, spans, scaling, window), None
    return _one_by_one(*qkv, spans, scaling, window).transpose(1, 2), None


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, spans: Spans, scaling: float | None, window: int | None) -> Tensor:
    pieces = [length for group in spans.groups for length in group]
    parts = zip(q.split(pieces, dim=2), k.split(pieces, dim=2), v.split(pieces, dim=2), strict=True)
    out: list[Tensor] = []
    for group in spans.groups:
        trunk_q, trunk_k, trunk_v = next(parts)
        branches = [next(parts) for _ in group[1:]]
        for number, (branch_q, branch_k, branch_v) in enumerate(branches):
            # Behind a trunk that is no longer than itself, a branch costs less as a whole triangle, trunk and all, than
            # as a rectangle: that one needs a mask, which every layer keeps, and none of it is skipped.
            whole = number == 0 or trunk_q.shape[2] <= branch_q.shape[2]
            queries = torch.cat([trunk_q, branch_q], dim=2) if whole else branch_q
            keys, values = torch.cat([trunk_k, branch_k], dim=2), torch.cat([trunk_v, branch_v], dim=2)
            begin = queries.shape[2] - branch_q.shape[2] if number else 0
            out.append(_one(queries, keys, values, scaling, window)[:, :, begin:])
        if not branches:
            out.append(_one(trunk_q, trunk_k, trunk_v, scaling, window))
    return torch.cat(out, dim=2)


def _one(q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """Return the attention of queries that are the last of their sequence's positions."""
    num_queries, num_keys = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    mask: Tensor | None = None
    if num_queries != num_keys or (window is not None and num_keys > window):
        at = torch.arange(num_keys - num_queries, num_keys, device=q.device)[:, None]
        seen = torch.arange(num_keys, device=q.device)[None, :]
        mask = seen <= at if window is None else (seen <= at) & (seen > at - window)
    attended: Tensor = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )
    return attended


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
