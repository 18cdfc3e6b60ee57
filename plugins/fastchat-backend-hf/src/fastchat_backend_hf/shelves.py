"""Shelves of the batch's cache: rows of similar length in one tensor per part, and what a step sees of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastchat_backend_hf.cells import Layout

__all__ = ["Row", "Shelf", "View", "view_of"]


@dataclass(slots=True, eq=False)
class Row:
    """One answer's tokens: so many of them, on this shelf, in this row of it."""

    length: int
    shelf: Shelf
    slot: int


class Shelf:
    """Rows of at most `columns` tokens. Live ones come first."""

    def __init__(self, layout: Layout, columns: int) -> None:
        self.columns = columns
        self.live: list[Row] = []
        self.parts = [
            torch.empty(0, kind.heads, columns, kind.width, dtype=kind.dtype, device=kind.device)
            for kind in layout.kinds
        ]
        """Keys and values of each layer in turn."""

    @property
    def rows(self) -> int:
        """Those there is room for in all parts: `resize` may have failed halfway."""
        return min(map(len, self.parts))

    @property
    def tokens(self) -> int:
        return self.rows * self.columns

    def resize(self, rows: int) -> None:
        """Have room for so many rows. New ones are zero, as what is masked must still be a number."""
        kept = len(self.live)
        for number, part in enumerate(self.parts):
            if len(part) != rows:
                resized = _zeros(rows, part)
                resized[:kept] = part[:kept]
                self.parts[number] = resized

    def take(self, slot: int, length: int) -> Row:
        """A row in the first free slot, which holds so many tokens already."""
        row = Row(length, self, slot)
        self.live.append(row)
        return row

    def leave(self, row: Row) -> None:
        """The last row takes the place of `row`."""
        last = self.live.pop()
        if last is not row:
            for part in self.parts:
                part[row.slot, :, : last.length] = part[last.slot, :, : last.length]
            self.live[row.slot] = last
            last.slot = row.slot


@dataclass(slots=True)
class View:
    """What a step does on one shelf."""

    shelf: Shelf
    rows: Tensor
    """Which of the batch's rows lie on it, in its order."""
    is_batch: bool
    """They are all of them, in the batch's order."""
    slots: Tensor
    columns: Tensor
    """Where each row's new token is written."""
    width: int
    """Columns to attend to."""
    mask: Tensor | None
    """``[rows, 1, 1, width]``; None: the rows are equally long."""

    def write(self, number: int, states: Tensor) -> Tensor:
        """Store ``[batch, heads, 1, width]`` in one part and return all of it that the step attends to."""
        part = self.shelf.parts[number]
        new = states if self.is_batch else states[self.rows.to(states.device)]
        part[self.slots.to(part.device), :, self.columns.to(part.device)] = new[:, :, 0]
        return part[: len(self.slots), :, : self.width]


def view_of(shelf: Shelf, rows: list[int], lengths: Tensor, batch: int) -> View:
    """What a step sees of `shelf`, whose rows have these numbers in a batch of so many, and hold `lengths`."""
    longest = max(row.length for row in shelf.live)
    device = lengths.device
    mask = None
    if any(row.length != longest for row in shelf.live):
        mask = (torch.arange(longest + 1, device=device) <= lengths[:, None])[:, None, None]
    return View(
        shelf,
        rows=torch.tensor(rows, device=device),
        is_batch=rows == list(range(batch)),
        slots=torch.arange(len(rows), device=device),
        columns=lengths,
        width=longest + 1,
        mask=mask,
    )


def _zeros(rows: int, like: Tensor) -> Tensor:
    """So many rows like those of `like`. On a CPU the system gives zeroed memory page by page, as it is written."""
    shape = (rows, *like.shape[1:])
    if like.device.type != "cpu" or rows == 0:
        return like.new_zeros(shape)
    return torch.from_numpy(np.zeros(math.prod(shape) * like.itemsize, np.uint8)).view(like.dtype).view(shape)
