"""Keys and values of the rows that are being generated, in one buffer that rows join and leave between steps.

Every row ends at the same column, so one forward pass continues all of them; a short row is preceded by columns that
its attention mask leaves out, exactly as in a left-padded batch. The filled columns are a window `[low, high)` of the
buffer: a step writes one column at its right end, a leaving long row moves its left end.

Shapes: R rows, H key-value heads, C columns, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

_SPARE_COLUMNS = 64


class _Window:
    def __init__(self, num_rows: int) -> None:
        self.low = self.high = 0
        self.num_rows = num_rows


class _Layer(CacheLayerMixin):
    """One model layer's keys and values: (R, H, C, D) each, R and C at least what the window needs."""

    is_sliding = False
    is_croppable = False

    def __init__(self, window: _Window) -> None:
        super().__init__()
        self._window = window

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        window, num_new = self._window, key_states.shape[2]
        if not self.is_initialized:
            # The first pass over a prompt: what the model computed becomes the buffer.
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        end = window.high + num_new
        self.keys[: window.num_rows, :, window.high : end] = key_states
        self.values[: window.num_rows, :, window.high : end] = value_states
        return self.keys[: window.num_rows, :, window.low : end], self.values[: window.num_rows, :, window.low : end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self._window.high - self._window.low

    def get_max_length(self) -> int:
        return -1

    def move(self, low: int, high: int, rows: int, to_low: int, shape: tuple[int, int]) -> None:
        """Copy the window into new buffers of `shape` = (R, C), beginning at column `to_low`."""
        self.keys = self._moved(self.keys, low, high, rows, to_low, shape)
        self.values = self._moved(self.values, low, high, rows, to_low, shape)

    @staticmethod
    def _moved(old: torch.Tensor, low: int, high: int, rows: int, to_low: int, shape: tuple[int, int]) -> torch.Tensor:
        # Zeros, not empty: a masked column still meets a weight of 0, and 0 · NaN would be NaN.
        new = old.new_zeros((shape[0], old.shape[1], shape[1], old.shape[3]))
        new[:rows, :, to_low : to_low + high - low] = old[:rows, :, low:high]
        return new


class RowCache(Cache):
    """A transformers cache whose rows come and go.

    Args:
        num_layers: attention layers of the model.
        num_rows: rows of the first forward pass.
    """

    def __init__(self, num_layers: int, num_rows: int) -> None:
        self._window = _Window(num_rows)
        super().__init__(layers=[_Layer(self._window) for _ in range(num_layers)])

    @property
    def num_rows(self) -> int:
        return self._window.num_rows

    @property
    def num_columns(self) -> int:
        """Columns in use, the longest row's length."""
        return self._window.high - self._window.low

    def advance(self, num_columns: int) -> None:
        """Count columns that a forward pass has just written."""
        self._window.high += num_columns

    def reserve(self, num_columns: int) -> None:
        """Make room for columns to the right, before a forward pass that is not the first."""
        if self._window.high + num_columns > self._capacity[1]:
            self._resize(self._capacity[0], left=0, right=num_columns + max(_SPARE_COLUMNS, self.num_columns // 4))

    def join(self, other: RowCache) -> None:
        """Append the rows of another cache below the own ones, aligned at the right end."""
        window, num_new = self._window, other.num_columns
        missing = max(0, num_new - self.num_columns)
        rows = window.num_rows + other.num_rows
        if rows > self._capacity[0] or missing > window.low:
            self._resize(max(rows, self._capacity[0]), left=missing, right=_SPARE_COLUMNS)
        start = window.high - num_new
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            low, high = other._window.low, other._window.high
            mine.keys[window.num_rows : rows, :, start : window.high] = theirs.keys[: other.num_rows, :, low:high]
            mine.values[window.num_rows : rows, :, start : window.high] = theirs.values[: other.num_rows, :, low:high]
        window.low -= missing
        window.num_rows = rows

    def remove(self, row: int) -> None:
        """Drop a row; the last row takes its place."""
        last = self._window.num_rows - 1
        if row != last:
            for layer in self.layers:
                layer.keys[row] = layer.keys[last]
                layer.values[row] = layer.values[last]
        self._window.num_rows = last

    def trim(self, num_columns: int) -> None:
        """Keep only the last columns: the longest row has left."""
        self._window.low = self._window.high - num_columns

    @property
    def _capacity(self) -> tuple[int, int]:
        keys = self.layers[0].keys
        return keys.shape[0], keys.shape[2]

    def _resize(self, num_rows: int, *, left: int, right: int) -> None:
        window, width = self._window, self.num_columns
        for layer in self.layers:
            layer.move(window.low, window.high, window.num_rows, left, (num_rows, left + width + right))
        window.low, window.high = left, left + width
