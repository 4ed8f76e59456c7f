"""What each step trains on: a pure function of (rows, seed, step), so that the step number is the position in the data.

Every epoch is a permutation of all sequences, drawn from (seed, epoch). A global batch is the next
`global_batch_size` of them, across the end of an epoch; the last one of a training holds what is left. It is dealt out
to the ranks by length, and each rank's share is cut into micro-batches of bounded size; the sum of losses is the same
however it is dealt and cut. Three layouts, by what the model's attention can do:

    spans      one row without padding; what sequences begin with together lies in it once (`beginnings`,
               `model.attention`), and rows that share much are dealt and cut together
    positions  one row without padding, told apart by positions that restart (transformers' flash attention)
    padded     rows of like length side by side

Shapes: B sequences of a micro-batch, T tokens, N positions whose next token has a loss.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.model.attention import Spans
from tunesmith.recipe.effects import num_steps, num_training_sequences
from tunesmith.recipe.schema import Train
from tunesmith.tokens.shards import Shards
from tunesmith.train.beginnings import MIN_SHARED, Family, families, in_order, num_common

Rows = npt.NDArray[np.int64]
Layout = Literal["spans", "positions", "padded"]
Sequences = list[tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]]


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        ids_BT: padded on the right, or one packed row (B = 1).
        positions_BT: of packed rows, restarting with each; None when every row begins at 0.
        spans: who sees whom in a packed row; None for the other layouts.
        select_N: index into the flattened B·T positions whose next token has a loss; targets_N is that token.
        sequence_N: the sequence each of them belongs to. For preferences, sequence p < P is the chosen answer of pair p
            and P + p the rejected one.
        rows: indices into the shards, (B,) or (P,).
        num_tokens: real tokens of all sequences, without padding; a pair's prompt counts twice.
        num_computed: positions that go through the model, padding and all; a shared beginning counts once.
        num_pairs: (query, key) pairs of the causal attention.
    """

    ids_BT: Tensor
    positions_BT: Tensor | None
    spans: Spans | None
    select_N: Tensor
    targets_N: Tensor
    sequence_N: Tensor
    num_sequences: int
    rows: Rows
    num_tokens: int
    num_computed: int
    num_pairs: int


class Stream:
    """The rows of every step."""

    def __init__(self, num_sequences: int, train: Train, seed: int) -> None:
        self.num_sequences = num_sequences
        self.num_steps = num_steps(train, num_sequences)
        self._size, self._seed = train.global_batch_size, seed
        self._total = num_training_sequences(train, num_sequences)
        self._epoch: tuple[int, Rows] | None = None

    def rows(self, step: int) -> Rows:
        """Return the global batch of a step (counted from 0)."""
        begin = step * self._size
        end = max(begin + 1, min(begin + self._size, self._total))
        return np.array([self._row(position) for position in range(begin, end)], dtype=np.int64)

    def epochs_done(self, steps: int) -> float:
        """Return how many passes over the rows lie behind after so many steps."""
        return min(steps * self._size, self._total) / self.num_sequences

    def _row(self, position: int) -> int:
        epoch, index = divmod(position, self.num_sequences)
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(self.num_sequences)
            self._epoch = (epoch, order.astype(np.int64))
        return int(self._epoch[1][index])


class Collator:
    """Turns rows into micro-batches on the device.

    Args:
        max_tokens: positions of one micro-batch, padding and all; a single row may be longer.
        rank, num_ranks: whose share of a global batch is yielded.
        even: give every rank as many micro-batches as the rank with the most, the last ones empty: for ranks that meet
            in every forward pass.
    """

    def __init__(
        self, shards: Shards, layout: Layout, *, max_tokens: int, device: torch.device,
        rank: int = 0, num_ranks: int = 1, even: bool = False,
    ) -> None:  # fmt: skip
        self.max_tokens = max_tokens
        self._shards, self._layout, self._device = shards, layout, device
        self._rank, self._num_ranks, self._even = rank, num_ranks, even
        self.lengths = _row_lengths(shards, shared=layout == "spans", padded=layout == "padded")
        self._num_sides = 1 if shards.num_segments == 1 else 2

    def micro_batches(self, rows: Rows) -> Iterator[Batch]:
        """Yield this rank's share of a global batch piece by piece, longest sequences first."""
        shares = self.shares(rows)
        bins = [self._cut(share) for share in shares] if self._even else [self._cut(shares[self._rank])]
        mine = bins[self._rank] if self._even else bins[0]
        for piece in mine:
            yield self._collate(piece)
        for _ in range(max(map(len, bins)) - len(mine)):
            yield self._empty()

    def shares(self, rows: Rows) -> list[list[Family]]:
        """Deal rows out to the ranks: each family, longest first, to the rank with the fewest tokens so far."""
        lengths = self.lengths[rows].tolist()
        if self._layout == "spans":
            limit = min(self.max_tokens, sum(lengths) // self._num_ranks)
            dealt = families(rows.tolist(), [self._shards.segment(int(row), 0)[0] for row in rows], lengths, limit)
        else:
            dealt = [Family([row], length) for row, length in zip(rows.tolist(), lengths, strict=True)]
        hands: list[list[Family]] = [[] for _ in range(self._num_ranks)]
        loads = [(0, rank) for rank in range(self._num_ranks)]
        for family in sorted(dealt, key=lambda family: -family.positions):
            load, rank = heapq.heappop(loads)
            hands[rank].append(family)
            heapq.heappush(loads, (load + family.positions, rank))
        return hands

    def halve(self) -> None:
        """Make micro-batches half as large from now on."""
        self.max_tokens = max(1, self.max_tokens // 2)

    def num_targets(self, rows: Rows) -> int:
        """Return how many tokens with a loss a global batch has: what its sum of losses is divided by."""
        return sum(int(trained[1:].sum()) for row in rows for _, trained in self._sequences(int(row)))

    def largest(self) -> Rows:
        """Return the longest rows of all, as many as fill a micro-batch of every rank."""
        order = np.argsort(-self.lengths, kind="stable").astype(np.int64)
        filled = np.searchsorted(np.cumsum(self.lengths[order]), self.max_tokens * self._num_ranks)
        return order[: int(filled) + 1]

    def _cut(self, families: list[Family]) -> list[Rows]:
        """Cut a share, longest first, into pieces of at most `max_tokens`: first fit, so that few are half empty."""
        pieces: list[list[int]] = []
        used: list[int] = []
        for family in families:
            fits = (n for n, taken in enumerate(used) if self._with(pieces[n], taken, family) <= self.max_tokens)
            at = next(fits, None)
            if at is None:
                pieces.append([])
                used.append(0)
                at = len(pieces) - 1
            used[at] = self._with(pieces[at], used[at], family)
            pieces[at] += family.rows
        return [np.array(piece, dtype=np.int64) for piece in pieces]

    def _with(self, piece: list[int], taken: int, family: Family) -> int:
        """Return the positions of a piece when a family is added to it."""
        if self._layout != "padded":
            return taken + family.positions
        widest = int(self.lengths[piece[0]]) if piece else family.positions
        return widest * (len(piece) + 1) * self._num_sides

    def _sequences(self, row: int) -> Sequences:
        """Return ids and flags of a row: one sequence, or prompt + chosen and prompt + rejected."""
        first = self._shards.segment(row, 0)
        if self._num_sides == 1:
            return [first]
        sides = (self._shards.segment(row, side) for side in (1, 2))
        return [
            (np.concatenate([first[0], side[0]]), np.concatenate([np.zeros_like(first[1]), side[1]])) for side in sides
        ]

    def _collate(self, rows: Rows) -> Batch:
        by_row = [self._sequences(int(row)) for row in rows]
        sequences = [sides[side] for side in range(self._num_sides) for sides in by_row]  # chosen ones first
        num_all = len(sequences)
        shared, order = [0] * num_all, list(range(num_all))
        if self._layout == "spans":
            order = in_order([ids for ids, _ in sequences])
            for before, n in pairwise(order):
                common = num_common(sequences[before][0], sequences[n][0])
                shared[n] = common if common >= MIN_SHARED else 0
        elif self._layout == "positions":  # a pair's answers side by side
            order = [side * len(rows) + n for n in range(len(rows)) for side in range(self._num_sides)]
        width = max(len(ids) for ids, _ in sequences) if self._layout == "padded" else 0
        placed, begin = list[_Placed](), 0
        for n in order:
            ids, trained = sequences[n]
            before_it = placed[-1].places[: shared[n]] if shared[n] else np.zeros(0, dtype=np.int64)
            places = np.concatenate([before_it, np.arange(begin, begin + len(ids) - shared[n])])
            placed.append(_Placed(n, ids.astype(np.int64), trained, places, shared[n]))
            begin += width or len(ids) - shared[n]
        return self._batch(rows, placed, begin, width)

    def _batch(self, rows: Rows, placed: list[_Placed], total: int, width: int) -> Batch:
        flat, positions = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
        select, targets, owners = list[Rows](), list[Rows](), list[Rows]()
        for one in placed:
            flat[one.places[one.shared :]] = one.ids[one.shared :]
            positions[one.places[one.shared :]] = np.arange(one.shared, len(one.ids))
            predicted = np.flatnonzero(one.trained[1:])  # the token at t + 1 is predicted at t; the first one never is
            select.append(one.places[predicted])
            targets.append(one.ids[1:][predicted])
            owners.append(np.full(len(predicted), one.owner, dtype=np.int64))
        lengths, skips = [len(one.ids) for one in placed], [one.shared for one in placed]
        packed = self._layout != "padded"
        shape = (1, -1) if packed else (len(placed), width)
        spans = Spans.of([one.places for one in placed], skips, self._device) if self._layout == "spans" else None
        return Batch(
            ids_BT=self._tensor(flat).view(shape),
            positions_BT=self._tensor(positions).view(shape) if packed else None,
            spans=spans,
            select_N=self._tensor(np.concatenate(select)),
            targets_N=self._tensor(np.concatenate(targets)),
            sequence_N=self._tensor(np.concatenate(owners)),
            num_sequences=len(placed),
            rows=rows,
            num_tokens=sum(lengths),
            num_computed=total,
            num_pairs=sum((n * (n + 1) - skip * (skip + 1)) // 2 for n, skip in zip(lengths, skips, strict=True)),
        )

    def _empty(self) -> Batch:
        """Return a micro-batch without a row: a position that nobody learns from."""
        nothing = self._tensor(np.zeros(0, dtype=np.int64))
        one = self._tensor(np.zeros(1, dtype=np.int64)).view(1, 1)
        packed = self._layout != "padded"
        spans = Spans.of([np.zeros(1, dtype=np.int64)], [0], self._device) if self._layout == "spans" else None
        rows = np.zeros(0, dtype=np.int64)
        return Batch(one, one if packed else None, spans, nothing, nothing, nothing, 0, rows, 0, 0, 0)

    def _tensor(self, values: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)


@dataclass(frozen=True)
class _Placed:
    """A sequence, and where each of its tokens lies in the flattened micro-batch.

    Attributes:
        owner: which sequence of the micro-batch it is.
        shared: how many of its first tokens lie there for an earlier sequence already.
    """

    owner: int
    ids: Rows
    trained: npt.NDArray[np.bool_]
    places: Rows
    shared: int


def _row_lengths(shards: Shards, *, shared: bool, padded: bool) -> npt.NDArray[np.int64]:
    """Return the positions each row takes; side by side (`padded`) those of its longer sequence."""
    lengths = shards.lengths
    if shards.num_segments == 1:
        return np.asarray(lengths[:, 0])
    prompt, answers = lengths[:, 0], lengths[:, 1:]
    if padded:
        return np.asarray(prompt + answers.max(axis=1))
    once = shared & (prompt >= MIN_SHARED)
    return np.asarray(prompt * np.where(once, 1, 2) + answers.sum(axis=1))
