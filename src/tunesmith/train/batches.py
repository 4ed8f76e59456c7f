"""What each step trains on: a pure function of (rows, seed, step), so that the step number is the position in the data.

Every epoch is a permutation of all sequences, drawn from (seed, epoch). A global batch is the next
`global_batch_size` of them, across the end of an epoch; the last one of a training holds what is left. Inside a global
batch the sequences are sorted by length and cut into micro-batches, so that little is padded; its sum of losses is the
same however it is cut.

Shapes: B sequences of a micro-batch, T tokens, N positions whose next token has a loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.recipe.effects import num_steps, num_training_sequences
from tunesmith.recipe.schema import Train
from tunesmith.tokens.shards import Shards

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        ids_BT: padded on the right, or one packed row (B = 1).
        positions_BT: of packed rows, restarting with each; None when every row begins at 0.
        select_N: index into the flattened B·T positions whose next token has a loss; targets_N is that token.
        sequence_N: the sequence each of them belongs to. For preferences, sequence p < P is the chosen answer of pair p
            and P + p the rejected one.
        rows: indices into the shards, (B,) or (P,).
        num_tokens: real tokens, without padding.
    """

    ids_BT: Tensor
    positions_BT: Tensor | None
    select_N: Tensor
    targets_N: Tensor
    sequence_N: Tensor
    num_sequences: int
    rows: Rows
    num_tokens: int


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
    """Turns rows into micro-batches on the device."""

    def __init__(self, shards: Shards, *, micro_batch_size: int, packing: bool, device: torch.device) -> None:
        self._shards = shards
        self._size, self._packing, self._device = micro_batch_size, packing, device
        self._lengths = _row_lengths(shards)

    def micro_batches(self, rows: Rows) -> Iterator[Batch]:
        """Yield a global batch piece by piece, longest sequences first, so that a lack of memory shows at once."""
        order = np.argsort(-self._lengths[rows], kind="stable")
        for begin in range(0, len(rows), self._size):
            yield self._collate(rows[order[begin : begin + self._size]])

    def num_targets(self, rows: Rows) -> int:
        """Return how many tokens with a loss a global batch has: what its sum of losses is divided by."""
        return sum(int(trained[1:].sum()) for row in rows for _, trained in self._sequences(int(row)))

    def _sequences(self, row: int) -> list[tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]]:
        """Return ids and flags of a row: one sequence, or prompt + chosen and prompt + rejected."""
        first = self._shards.segment(row, 0)
        if self._shards.num_segments == 1:
            return [first]
        sides = (self._shards.segment(row, side) for side in (1, 2))
        return [
            (np.concatenate([first[0], side[0]]), np.concatenate([np.zeros_like(first[1]), side[1]])) for side in sides
        ]

    def _collate(self, rows: Rows) -> Batch:
        by_row = [self._sequences(int(row)) for row in rows]
        sequences = [row[side] for side in range(len(by_row[0])) for row in by_row]  # all chosen, then all rejected
        lengths = np.array([len(ids) for ids, _ in sequences], dtype=np.int64)
        width = int(lengths.max())
        begins = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if self._packing else np.arange(len(lengths)) * width
        flat = np.zeros(int(lengths.sum()) if self._packing else width * len(lengths), dtype=np.int64)
        positions = np.zeros_like(flat)
        select, targets, owners = [], [], []
        for number, ((ids, trained), begin) in enumerate(zip(sequences, begins, strict=True)):
            flat[begin : begin + len(ids)] = ids
            positions[begin : begin + len(ids)] = np.arange(len(ids))
            predicted = np.flatnonzero(trained[1:])  # the token at t + 1 is predicted at t; the first never is
            select.append(begin + predicted)
            targets.append(ids[1:][predicted].astype(np.int64))
            owners.append(np.full(len(predicted), number, dtype=np.int64))
        shape = (1, -1) if self._packing else (len(lengths), width)
        return Batch(
            ids_BT=self._tensor(flat).view(shape),
            positions_BT=self._tensor(positions).view(shape) if self._packing else None,
            select_N=self._tensor(np.concatenate(select)),
            targets_N=self._tensor(np.concatenate(targets)),
            sequence_N=self._tensor(np.concatenate(owners)),
            num_sequences=len(sequences),
            rows=rows,
            num_tokens=int(lengths.sum()),
        )

    def _tensor(self, values: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)


def _row_lengths(shards: Shards) -> npt.NDArray[np.int64]:
    """Return the tokens of each row's longest sequence."""
    lengths = shards.lengths
    if shards.num_segments == 1:
        return np.asarray(lengths[:, 0])
    return np.asarray(lengths[:, 0] + np.maximum(lengths[:, 1], lengths[:, 2]))
