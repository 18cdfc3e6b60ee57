"""The key-value cache of the batch: one row per answer, written in place.

Per layer, keys and values are ``[rows, heads, columns, head_dim]``. The token at position *i* of the answer in
row *r* lies in row *r*, column *i*. So a newcomer is written into the next free row while
nobody else moves, and when a row leaves, the last one takes its place: live rows are always the
first ones, and a step attends to a plain view. Rows are shorter than the view; the mask hides the rest.

The tensors grow in both directions, generously while the budget allows. `KvCache.fits` says
beforehand whether they may; the scheduler asks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

__all__ = ["COLUMN_BLOCK", "KvCache", "Span"]

COLUMN_BLOCK = 16
"""Columns are added in multiples of this."""


@dataclass(slots=True)
class Span:
    """Where one forward pass writes: `length` columns from `start` on in `count` rows from `first` on.

    `cells` is set for a decoding step: there each row has its own start, and one column is written. It holds the
    row and column of each new token, two tensors ``[count]``.
    """

    first: int = 0
    count: int = 0
    start: int = 0
    length: int = 0
    cells: tuple[Tensor, Tensor] | None = None

    @property
    def width(self) -> int:
        """Columns that the pass attends to."""
        return self.start + self.length

    def place(self, *, first: int, count: int, start: int, length: int) -> None:
        """Write one block for all rows."""
        self.first, self.count, self.start, self.length, self.cells = first, count, start, length, None

    def place_step(self, lengths: Tensor, width: int) -> None:
        """Write one token behind each of the first rows, which hold `lengths`; `width` is the longest plus one."""
        self.place(first=0, count=len(lengths), start=width - 1, length=1)
        self.cells = (torch.arange(len(lengths), device=lengths.device), lengths)


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not annotated
    """Keys and values of one layer."""

    is_sliding = False

    def __init__(self, span: Span) -> None:
        super().__init__()
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self._span = span
        self.shape = (0, 0)
        """Rows and columns to hold from the next update on."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """`update` does it."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys = self._reshaped(self.keys, key_states)
        self.values = self._reshaped(self.values, value_states)
        self.is_initialized = True
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def _write(self, cells: Tensor, states: Tensor) -> Tensor:
        """Store `states` and return all that the pass attends to."""
        span = self._span
        rows = slice(span.first, span.first + span.count)
        if span.cells is not None:
            row, column = span.cells
            cells[row.to(cells.device), :, column.to(cells.device)] = states[:, :, 0]
        else:
            cells[rows, :, span.start : span.width] = states
            if span.start == 0:
                return states
        return cells[rows, :, : span.width]

    def _reshaped(self, cells: Tensor | None, states: Tensor) -> Tensor:
        """`cells` in `shape`, where `states` are; new ones are zero, as what is masked must still be a number."""
        if cells is not None and (cells.shape[0], cells.shape[2]) == self.shape:
            return cells
        rows, columns = self.shape
        grown = states.new_zeros(rows, states.shape[1], columns, states.shape[3])
        if cells is not None:
            rows, columns = min(rows, cells.shape[0]), min(columns, cells.shape[2])
            grown[:rows, :, :columns] = cells[:rows, :, :columns]
        return grown

    def reset(self) -> None:
        self.keys = self.values = None
        self.is_initialized, self.shape = False, (0, 0)

    def get_seq_length(self) -> int:
        return self._span.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._span.width, 0

    def get_max_length(self) -> int:
        return -1


class KvCache(Cache):  # type: ignore[misc]
    """The cache given to the model. Every forward pass is preceded by ``span.place``."""

    def __init__(self, *, layers: int, max_rows: int, max_columns: int, budget_tokens: int) -> None:
        """`budget_tokens` bounds rows times columns and is at least `max_columns`."""
        self.span = Span()
        super().__init__(layers=[_SlotLayer(self.span) for _ in range(layers)])
        self._max_rows, self._max_columns = max_rows, max_columns
        self.budget_tokens = budget_tokens
        self._shape = (0, 0)
        self._generous = True

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether rows of these lengths can be held together."""
        return len(lengths) * self._rounded(max(lengths, default=0)) <= self.budget_tokens

    def reserve(self, rows: int, columns: int) -> None:
        """Make room for rows 0 to `rows`, columns 0 to `columns`; the caller has asked `fits`."""
        if rows <= self._shape[0] and columns <= self._shape[1]:
            return
        self._shape = self._roomy(rows, columns)
        for layer in self._slots():
            layer.shape = self._shape

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` columns of one row to another."""
        for layer in self._slots():
            for cells in (layer.keys, layer.values):
                if cells is not None:
                    cells[target, :, :length] = cells[source, :, :length]

    def scrub(self, row: int) -> None:
        """Forget what a row holds: a value that is not a number would leak through the mask."""
        for layer in self._slots():
            for cells in (layer.keys, layer.values):
                if cells is not None:
                    cells[row] = 0

    def shrink(self) -> bool:
        """Hold no more than is needed from now on; False if that is so already."""
        was_generous, self._generous = self._generous, False
        self._shape = (0, 0)  # so that the next `reserve` plans anew
        return was_generous

    def release(self) -> None:
        """Give the memory back."""
        self._shape = (0, 0)
        for layer in self._slots():
            layer.reset()

    @property
    def bytes_per_token(self) -> int:
        """Of all layers together, known after the first pass."""
        cells = [cells for layer in self._slots() for cells in (layer.keys, layer.values) if cells is not None]
        return sum(part.shape[1] * part.shape[3] * part.element_size() for part in cells)

    def _roomy(self, rows: int, columns: int) -> tuple[int, int]:
        """The shape to grow to: more than is asked for, if the budget holds it, so that growing is rare."""
        tight = self._rounded(columns)
        if not self._generous:
            return rows, tight
        more_rows = min(self._max_rows, 1 << (rows - 1).bit_length())
        more_columns = min(self._rounded(columns * 3 // 2), self._max_columns)
        for shape in ((more_rows, more_columns), (more_rows, tight), (rows, more_columns)):
            if shape[0] * shape[1] <= self.budget_tokens:
                return shape
        return rows, tight

    def _rounded(self, columns: int) -> int:
        return min(-(-columns // COLUMN_BLOCK) * COLUMN_BLOCK, max(self._max_columns, columns))

    def _slots(self) -> list[_SlotLayer]:
        return [layer for layer in self.layers if isinstance(layer, _SlotLayer)]
