"""Keys and values of one context, outside the batch: what a prompt is read into, and the blocks kept of it.

Layers with equally shaped keys or values share one tensor, a slab, so that copying a
block takes a handful of operations however many layers there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

__all__ = ["BlockCache", "Cells", "Layout"]


class _Kind(NamedTuple):
    """What keys or values of one layer look like for one token."""

    heads: int
    width: int
    dtype: torch.dtype
    device: torch.device


class Layout:
    """Where each layer's keys and values lie. Part ``2 * i`` is the keys of layer *i*, the next one its values."""

    def __init__(self, sample: Cache) -> None:
        """`sample` has been through a pass."""
        parts = [part for layer in sample.layers for part in (layer.keys, layer.values)]
        self.kinds = [_Kind(part.shape[1], part.shape[3], part.dtype, part.device) for part in parts]
        self._slabs = list(dict.fromkeys(self.kinds))
        self.places = [
            (self._slabs.index(kind), self.kinds[:number].count(kind)) for number, kind in enumerate(self.kinds)
        ]
        """Of each part: its slab, and its place in it."""

    @property
    def layers(self) -> int:
        return len(self.kinds) // 2

    @property
    def bytes_per_token(self) -> int:
        """Of all layers together."""
        return sum(kind.heads * kind.width * kind.dtype.itemsize for kind in self.kinds)

    def empty(self, tokens: int) -> Cells:
        """Room for this many tokens, not initialised."""
        slabs = [
            torch.empty(self.kinds.count(kind), kind.heads, tokens, kind.width, dtype=kind.dtype, device=kind.device)
            for kind in self._slabs
        ]
        return Cells(self, slabs)


class Cells:
    """Keys and values of consecutive tokens: slabs ``[parts, heads, tokens, width]``."""

    __slots__ = ("_layout", "_slabs")

    def __init__(self, layout: Layout, slabs: Sequence[Tensor]) -> None:
        self._layout, self._slabs = layout, slabs

    def __len__(self) -> int:
        return self._slabs[0].shape[2]

    def part(self, number: int) -> Tensor:
        """A view ``[heads, tokens, width]``."""
        slab, place = self._layout.places[number]
        return self._slabs[slab][place]

    def view(self, start: int, stop: int) -> Cells:
        """These tokens, in the same memory."""
        return Cells(self._layout, [slab[:, :, start:stop] for slab in self._slabs])

    def blocks(self, size: int) -> list[Cells]:
        """Copies of every `size` tokens."""
        views = (self.view(start, start + size) for start in range(0, len(self), size))
        return [Cells(self._layout, [slab.clone() for slab in view._slabs]) for view in views]

    def paste(self, start: int, blocks: Sequence[Self]) -> None:
        """Write `blocks`, one behind the other, from token `start` on."""
        for number, slab in enumerate(self._slabs):
            joined = torch.cat([block._slabs[number] for block in blocks], dim=2)
            slab[:, :, start : start + joined.shape[2]] = joined


class _BlockLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not annotated
    """One layer of the contexts being read."""

    is_sliding = False

    def __init__(self, cache: BlockCache, number: int) -> None:
        super().__init__()
        self._cache, self._number = cache, number
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The room is there already."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        number = 2 * self._number
        return self._cache.write(number, key_states), self._cache.write(number + 1, value_states)

    def get_seq_length(self) -> int:
        return self._cache.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.start + query_length, 0

    def get_max_length(self) -> int:
        return -1


class BlockCache(Cache):  # type: ignore[misc]
    """The cache given to the model while it reads a block of one context, or several contexts from their beginning."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[_BlockLayer(self, number) for number in range(layers)])
        self.start = 0
        self._targets: Sequence[Cells] = ()

    def place(self, targets: Sequence[Cells], start: int) -> None:
        """The next pass writes to `targets` from token `start` on, which is 0 if there are several.

        What goes over the end of a target is padding, and is dropped.
        """
        self._targets, self.start = targets, start

    def write(self, number: int, states: Tensor) -> Tensor:
        """Store `states` ``[targets, heads, tokens, width]`` and return all that the pass attends to."""
        start, stop = self.start, self.start + states.shape[2]
        for target, rows in zip(self._targets, states, strict=True):
            part = target.part(number)
            part[:, start:stop] = rows[:, : part.shape[1] - start]
        return states if start == 0 else self._targets[0].part(number)[None, :, :stop]
