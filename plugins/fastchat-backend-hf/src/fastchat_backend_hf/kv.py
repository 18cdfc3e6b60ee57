"""The key-value cache of the batch: rows of similar length lie on one shelf, and a step attends shelf by shelf.

A shelf holds rows of at most so many columns, twice as many as the next smaller one: per layer, keys and values are
``[rows, heads, columns, width]``. The token at position *i* of an answer lies in column *i* of its row. A newcomer is
written into the next free row of its shelf while nobody else moves; the shelf's last row takes the place of one that
leaves; a row that outgrows its shelf moves to the next. So memory and work follow the sum of
the lengths, not their number times the longest, and what a step attends to are plain views of which the
mask hides the unused ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from fastchat_backend_hf.cells import Cells, Layout
from fastchat_backend_hf.failures import is_out_of_memory
from fastchat_backend_hf.shelves import Row, Shelf, View, view_of

__all__ = ["LEAST_COLUMNS", "Attend", "KvCache"]

LEAST_COLUMNS = 256
"""Of the smallest shelf. Every shelf costs a step an attention of its own in each layer, so few are better."""

_LEAST_COLUMNS_OF_SMALL_BUDGET = 64
"""Where not even the most rows fit with more."""

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Attention of ``query, keys, values, mask``: ``[rows, heads, tokens, width]`` each, the mask
``[rows, 1, 1, columns]``; its result has rows first."""


class _RowsLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not annotated
    """One layer, as transformers knows it."""

    is_sliding = False

    def __init__(self, cache: KvCache, number: int) -> None:
        super().__init__()
        self._cache, self._number = cache, number
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The room is there already."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self._cache.attends:
            return key_states, value_states
        return self._cache.gather(2 * self._number, key_states), self._cache.gather(2 * self._number + 1, value_states)

    def get_seq_length(self) -> int:
        return 0 if self._cache.attends else self._cache.width - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length if self._cache.attends else self._cache.width, 0

    def get_max_length(self) -> int:
        return -1


class KvCache(Cache):  # type: ignore[misc]
    """The cache given to the model in a decoding step, which is preceded by `place`.

    Attributes:
        attends: The model's attention goes through `attend`, and no mask is asked for. Otherwise each layer is given
            the rows of all shelves side by side, which takes a copy when there are several.
        width: Columns of the longest row in the step.
        tokens_elsewhere: What contexts that are being read take of the budget.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        max_rows: int,
        max_columns: int,
        budget_tokens: int,
        make_room: Callable[[int], None],
        least_columns: int = LEAST_COLUMNS,
    ) -> None:
        """`budget_tokens` is at least `max_columns`; `make_room` is told how much of it is about to be taken."""
        super().__init__(layers=[_RowsLayer(self, number) for number in range(layout.layers)])
        self._layout, self._make_room = layout, make_room
        self._max_rows, self._budget_tokens = max_rows, budget_tokens
        while least_columns > _LEAST_COLUMNS_OF_SMALL_BUDGET and max_rows * least_columns > budget_tokens:
            least_columns //= 2
        self._least_columns, self._max_columns = least_columns, max_columns
        self.attends, self.width, self.tokens_elsewhere = False, 0, 0
        self._rows: list[Row] = []
        self._shelves: dict[int, Shelf] = {}
        self._views: list[View] = []
        self._generous = True

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def tokens(self) -> int:
        """What there is room for."""
        return sum(shelf.tokens for shelf in self._shelves.values())

    @property
    def used_tokens(self) -> int:
        """What the rows take."""
        return sum(row.shelf.columns for row in self._rows)

    @property
    def lengths(self) -> list[int]:
        return [row.length for row in self._rows]

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether rows of these lengths can be held together."""
        return sum(map(self._columns, lengths)) <= self._budget_tokens

    # ---------------------------------------------------------------------------------- rows come and go

    def add(self, cells: Cells | None, length: int) -> None:
        """A row behind the others, with the first `length` tokens of `cells`. After an exception there is none."""
        shelf, slot = self._free_slot(length + 1)
        if cells is not None:
            for number, part in enumerate(shelf.parts):
                part[slot, :, :length] = cells.part(number)[:, :length]
        self._rows.append(shelf.take(slot, length))

    def drop(self, row: int) -> None:
        """The last row takes the place of this one."""
        self._leave(self._rows[row])
        self._rows[row] = self._rows[-1]
        self._rows.pop()
        if not self._rows:
            self._generous = True

    def extend(self) -> None:
        """Give every row room for one token more."""
        for number, row in enumerate(self._rows):
            if row.length == row.shelf.columns:
                shelf, slot = self._free_slot(row.length + 1)
                for source, target in zip(row.shelf.parts, shelf.parts, strict=True):
                    target[slot, :, : row.length] = source[row.slot, :, : row.length]
                self._leave(row)
                self._rows[number] = shelf.take(slot, row.length)
        if self.tokens + self.tokens_elsewhere > self._budget_tokens:  # with places that rows have moved from
            self.compact()

    def scrub(self, row: int) -> None:
        """Forget what a row holds: a value that is not a number would leak through the mask."""
        for part in self._rows[row].shelf.parts:
            part[self._rows[row].slot] = 0

    def copy_out(self, row: int, start: int, stop: int) -> Cells:
        """A copy of what a row holds in these columns."""
        cells, held = self._layout.empty(stop - start), self._rows[row]
        for number, part in enumerate(held.shelf.parts):
            cells.part(number)[:] = part[held.slot, :, start:stop]
        return cells

    def shrink(self) -> bool:
        """Hold no more than is needed until the batch is empty; False if that is so already."""
        was_generous, self._generous = self._generous, False
        try:
            self.compact()
        except Exception as error:  # it copies before it gives back
            if not is_out_of_memory(error):
                raise
        return was_generous

    def compact(self) -> None:
        """Give back what no row is in."""
        for shelf in self._shelves.values():
            shelf.resize(len(shelf.live))

    def release(self) -> None:
        """End all rows and give the memory back."""
        self._rows.clear()
        self._views.clear()
        self._shelves.clear()
        self._generous = True

    # ------------------------------------------------------------------------------------------- a step

    def place(self, device: torch.device) -> Tensor:
        """The next pass writes one token behind each row. Returns their lengths ``[rows]``."""
        numbers = {id(row): number for number, row in enumerate(self._rows)}
        self._views = []
        for shelf in self._shelves.values():
            if shelf.live:
                lengths = torch.tensor([row.length for row in shelf.live], device=device)
                rows = [numbers[id(row)] for row in shelf.live]
                self._views.append(view_of(shelf, rows, lengths, len(self._rows)))
        self.width = max(view.width for view in self._views)
        only = self._views[0]
        return only.columns if only.is_batch else torch.tensor(self.lengths, device=device)

    def advance(self) -> None:
        """The pass is made."""
        for row in self._rows:
            row.length += 1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        """Store a layer's new keys and values, and let `attend` see each shelf. Rows first, as in `query`."""
        found = []
        for view in self._views:
            keys, values = view.write(2 * layer, key), view.write(2 * layer + 1, value)
            mask = None if view.mask is None else view.mask.to(query.device)
            if view.is_batch:
                return attend(query, keys, values, mask)
            found.append(attend(query[view.rows.to(query.device)], keys, values, mask))
        joined = found[0].new_empty(len(query), *found[0].shape[1:])
        for view, part in zip(self._views, found, strict=True):
            joined[view.rows.to(joined.device)] = part
        return joined

    def gather(self, number: int, states: Tensor) -> Tensor:
        """Store a part's new states and return all rows, ``[rows, heads, width of the longest, width]``."""
        parts = [view.write(number, states) for view in self._views]
        if self._views[0].is_batch:
            return parts[0]
        joined = states.new_zeros(len(states), states.shape[1], self.width, states.shape[3])
        for view, part in zip(self._views, parts, strict=True):
            joined[view.rows.to(joined.device), :, : view.width] = part
        return joined

    # ---------------------------------------------------------------------------------------------- room

    def _columns(self, length: int) -> int:
        """Of the shelf for rows of this length."""
        columns = self._least_columns << max(0, (length - 1) // self._least_columns).bit_length()
        return max(length, min(columns, self._max_columns))

    def _free_slot(self, length: int) -> tuple[Shelf, int]:
        """A place for a row of this length, nobody's yet."""
        columns = self._columns(length)
        shelf = self._shelves.get(columns) or Shelf(self._layout, columns)
        slot = len(shelf.live)
        if slot == shelf.rows:
            self._grow(shelf)
            self._shelves[columns] = shelf
        return shelf, slot

    def _grow(self, shelf: Shelf) -> None:
        """Room for one row more, or for twice as many while the budget is half empty: then growing is rare."""
        least = shelf.rows + 1
        rows = max(least, min(2 * shelf.rows, self._max_rows))
        if not self._generous or self._tokens_with(shelf, rows) > self._budget_tokens // 2:
            rows = least
        if not self._generous or self._tokens_with(shelf, rows) > self._budget_tokens:
            self.compact()
        self._make_room(self._tokens_with(shelf, rows))
        shelf.resize(rows)

    def _tokens_with(self, shelf: Shelf, rows: int) -> int:
        """What would be taken of the budget if `shelf` had so many rows."""
        return self.tokens + self.tokens_elsewhere + (rows - shelf.rows) * shelf.columns

    def _leave(self, row: Row) -> None:
        row.shelf.leave(row)
        self._views = []  # which would keep the shelf's memory until the next pass
        if not row.shelf.live:
            del self._shelves[row.shelf.columns]
