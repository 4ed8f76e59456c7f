from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from tunesmith.model.attention import Spans, attend  # noqa: E402
from tunesmith.train.beginnings import MIN_SHARED, families, in_order, num_common  # noqa: E402

LONG = [list(range(n, n + MIN_SHARED + n)) for n in (1, 2, 3)]
SEQUENCES = st.lists(
    st.lists(st.sampled_from([*LONG, [1], [2]]), min_size=1, max_size=4).map(
        lambda parts: list(chain.from_iterable(parts))
    ),
    min_size=1,
    max_size=8,
)


def arrays(sequences: list[list[int]]) -> list[Any]:
    return [np.array(ids, dtype=np.uint32) for ids in sequences]


@given(SEQUENCES)
def test_no_earlier_sequence_shares_more_than_the_one_before(sequences: list[list[int]]) -> None:
    ids = arrays(sequences)
    order = in_order(ids)
    assert [sequences[n] for n in order] == sorted(sequences)
    for place in range(1, len(order)):
        shared = [num_common(ids[before], ids[order[place]]) for before in order[:place]]
        assert max(shared) == shared[-1] < len(ids[order[place]])


@given(SEQUENCES, st.integers(20, 200))
def test_families_hold_every_row_once_and_keep_to_the_limit(sequences: list[list[int]], limit: int) -> None:
    lengths = [len(ids) for ids in sequences]
    found = families([10 * n for n in range(len(sequences))], arrays(sequences), lengths, limit)
    assert sorted(row for family in found for row in family.rows) == [10 * n for n in range(len(sequences))]
    assert all(family.positions <= limit or len(family.rows) == 1 for family in found)
    assert sum(family.positions for family in found) <= sum(lengths)


def test_token_ids_are_compared_as_numbers() -> None:
    assert in_order(arrays([[256], [1], [65_536], [70_000], [2]])) == [1, 4, 0, 2, 3]


def tree() -> tuple[list[Any], list[int], list[tuple[int, int]]]:
    """Return where five sequences' tokens lie, how many are shared, and where each one's own lie."""
    first = np.arange(30)
    second = np.concatenate([first[:20], np.arange(30, 37)])
    third = np.concatenate([second[:24], np.arange(37, 40)])  # of the second one's own, too
    fourth = np.concatenate([first[:20], np.arange(40, 80)])
    return (
        [first, second, third, fourth, np.arange(80, 85)],
        [0, 20, 24, 20, 0],
        [(0, 30), (30, 37), (37, 40), (40, 80), (80, 85)],
    )


@pytest.mark.parametrize("window", [None, 9, 25])
def test_attention_over_a_tree_is_attention_over_each_sequence(window: int | None) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, heads, 85, 8, generator=generator, requires_grad=True) for heads in (4, 2, 2))
    places, shared, own = tree()
    spans = Spans.of(places, shared, torch.device("cpu"))
    found = attend(None, q, k, v, None, sliding_window=window, spans=spans)[0]
    upstream = torch.randn(found.shape, generator=generator)
    gradients = torch.autograd.grad(found, (q, k, v), upstream)

    parts = []
    for at, skip in zip(places, shared, strict=True):
        index = torch.from_numpy(at)
        whole = attend(None, q[:, :, index], k[:, :, index], v[:, :, index], None, sliding_window=window)[0]
        parts.append(whole[:, skip:])
    expected = torch.cat(parts, dim=1)
    assert (found - expected).abs().max() < 1e-6
    for mine, theirs in zip(gradients, torch.autograd.grad(expected, (q, k, v), upstream), strict=True):
        assert (mine - theirs).abs().max() < 1e-5
    assert [(a, b) for a, b in zip(spans.cu_q_S1[:-1].tolist(), spans.cu_q_S1[1:].tolist(), strict=True)] == own


def test_what_variable_length_kernels_are_told_of_a_tree() -> None:
    """Their rule: queries of a sequence are the last of its keys' positions."""
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, 2, 85, 8, generator=generator) for _ in range(3))
    places, shared, _ = tree()
    spans = Spans.of(places, shared, torch.device("cpu"))
    assert spans.keys_K is not None and spans.longest_q == 40 and spans.longest_k == 60
    k_K, v_K = k[:, :, spans.keys_K], v[:, :, spans.keys_K]
    out = []
    for number in range(len(places)):
        queries = q[:, :, spans.cu_q_S1[number] : spans.cu_q_S1[number + 1]]
        keys, values = (t[:, :, spans.cu_k_S1[number] : spans.cu_k_S1[number + 1]] for t in (k_K, v_K))
        behind = keys.shape[2] - queries.shape[2]
        mask = torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool).tril(behind)
        out.append(functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask))
    expected = attend(None, q, k, v, None, spans=spans)[0]
    assert (torch.cat(out, dim=2).transpose(1, 2) - expected).abs().max() < 1e-6


def test_layers_use_each_others_masks() -> None:
    q, k, v = (torch.randn(1, 2, 85, 8) for _ in range(3))
    places, shared, _ = tree()
    spans = Spans.of(places, shared, torch.device("cpu"))
    attend(None, q, k, v, None, spans=spans)
    made = dict(spans.masks)
    attend(None, q, k, v, None, spans=spans)
    assert made and all(spans.masks[key] is mask for key, mask in made.items()) and len(spans.masks) == len(made)
