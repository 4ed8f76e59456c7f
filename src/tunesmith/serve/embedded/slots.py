"""Keys and values of the rows that are being generated: one slot per row, every slot beginning at column 0.

The slots of all rows lie in one buffer per layer, so that one attention call reads those of every row. The buffer grows
with the rows and with the longest of them, and never beyond `max_cells` = slots × columns.

Shapes: S slots, H key-value heads, C columns, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

_COLUMNS_STEP = 64


class Slots:
    """The buffers of all layers, made when a layer first writes.

    Args:
        max_slots: rows there may be.
        max_cells: slots × columns that there may be.
    """

    def __init__(self, max_slots: int, max_cells: int) -> None:
        self._max_slots, self._max_cells = max_slots, max_cells
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.num_slots = self.num_columns = 0

    def fits(self, num_slots: int, num_columns: int) -> bool:
        """Return whether so many slots of that length are within the bounds."""
        return num_slots <= self._max_slots and num_slots * num_columns <= self._max_cells

    def make_room(self, num_slots: int, num_columns: int) -> bool:
        """Have at least so many slots of at least that length, with what they hold; False when it is out of bounds."""
        if num_slots <= self.num_slots and num_columns <= self.num_columns:
            return True
        if not self.fits(num_slots, num_columns):
            return False
        slots, columns = max(num_slots, self.num_slots), max(num_columns, self.num_columns)
        if num_slots > self.num_slots:
            slots = min(self._max_slots, 1 << (num_slots - 1).bit_length())
        if num_columns > self.num_columns:
            columns = -(-num_columns * 5 // 4 // _COLUMNS_STEP) * _COLUMNS_STEP
        # Spare room is welcome, not needed: give up that for more columns first, then that for more slots.
        for shape in ((slots, columns), (slots, num_columns), (num_slots, num_columns)):
            if self.fits(*shape):
                self._reshape(*shape)
                break
        return True

    def layer(self, index: int, key_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a layer, (S, H, C, D) each; `key_states` (1, H, T, D) shows what they hold."""
        found = self._layers.get(index)
        if found is None:
            shape = (self.num_slots, key_states.shape[1], self.num_columns, key_states.shape[3])
            # Zeros, not empty: a column that is masked out has weight 0, and 0 · NaN would be NaN.
            found = self._layers[index] = (key_states.new_zeros(shape), key_states.new_zeros(shape))
        return found

    def copy(self, source: int, target: int, num_columns: int) -> None:
        """Copy the first columns of one slot to another."""
        for layer in self._layers.values():
            for buffer in layer:
                buffer[target, :, :num_columns] = buffer[source, :, :num_columns]

    def clear(self) -> None:
        """Give all memory back."""
        self._layers.clear()
        self.num_slots = self.num_columns = 0

    def _reshape(self, num_slots: int, num_columns: int) -> None:
        slots, columns = min(num_slots, self.num_slots), min(num_columns, self.num_columns)
        for index, layer in self._layers.items():
            made = []
            for old in layer:
                new = old.new_zeros((num_slots, old.shape[1], num_columns, old.shape[3]))
                new[:slots, :, :columns] = old[:slots, :, :columns]
                made.append(new)
            self._layers[index] = (made[0], made[1])
        self.num_slots, self.num_columns = num_slots, num_columns


class Step:
    """What one forward pass computes: a token for each of the first rows, and a stretch of each of some further ones.

    All of it lies one after the other in one row without padding, so that nothing but attention knows of rows.

    Args:
        slots: where keys and values go.
        lengths: length of each row that gets one token, this one included; their slots are 0, 1, ….
        chunks: (slot, first position, number of positions) of the stretches, in the order in which they lie.
    """

    def __init__(
        self, slots: Slots, lengths: list[int], chunks: list[tuple[int, int, int]], device: torch.device
    ) -> None:
        self.slots, self.chunks = slots, chunks
        self.num_single = len(lengths)
        self.longest = max(lengths, default=0)
        self.shortest = min(lengths, default=0)
        self.lengths_R = torch.tensor(lengths, device=device)
        self.rows_R = torch.arange(len(lengths), device=device)
        self.positions_R = self.lengths_R - 1
        self._masks: dict[tuple[int | None, torch.dtype], tuple[int, Tensor | None]] = {}

    def mask(self, window: int | None, dtype: torch.dtype) -> tuple[int, Tensor | None]:
        """Return the first column that any single token sees, and what is added to its scores, (R, 1, 1, C)."""
        key = (window, dtype)
        if key not in self._masks:
            self._masks[key] = self._mask(window, dtype)
        return self._masks[key]

    def _mask(self, window: int | None, dtype: torch.dtype) -> tuple[int, Tensor | None]:
        first = 0 if window is None else max(0, self.shortest - window)
        columns_C = torch.arange(first, self.longest, device=self.lengths_R.device)
        seen_RC = columns_C < self.lengths_R[:, None]
        if window is not None:
            seen_RC &= columns_C >= self.lengths_R[:, None] - window
        if bool(seen_RC.all()):
            return first, None
        added_RC = torch.zeros(seen_RC.shape, dtype=dtype, device=seen_RC.device)
        return first, added_RC.masked_fill_(~seen_RC, float("-inf"))[:, None, None]
