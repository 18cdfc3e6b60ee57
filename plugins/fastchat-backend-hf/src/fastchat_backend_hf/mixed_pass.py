"""One pass for the rows of a batch and blocks of prompts: their tokens side by side, each attending to its own.

On most machines a step's time is the reading of the weights. A block that rides along costs little more than
its own arithmetic, where a pass of its own would read them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastchat_backend_hf.cells import Cells
from fastchat_backend_hf.kv import Attend, KvCache

__all__ = ["MixedPass", "PassBlock"]


@dataclass(frozen=True, slots=True)
class PassBlock:
    """`count` tokens of a context, which are written to `cells` from `start` on."""

    cells: Cells
    start: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.count

    def mask(self, device: torch.device) -> Tensor | None:
        """``[1, 1, count, stop]``; None: causal, from the context's first token."""
        if not self.start:
            return None
        positions = torch.arange(self.stop, device=device)
        return (positions <= positions[self.start :, None])[None, None]

    def write(self, number: int, states: Tensor) -> Tensor:
        """Store ``[1, heads, count, width]`` in a part of the cells and return all of it up to there."""
        part = self.cells.part(number)
        part[:, self.start : self.stop] = states[0]
        return part[None, :, : self.stop]


class MixedPass:
    """The pass's attention. Its one sequence is a token of each of `rows`, and then those of each block."""

    def __init__(self, rows: KvCache, blocks: Sequence[PassBlock], device: torch.device) -> None:
        """`rows` have been placed."""
        self._rows = rows
        self._blocks = [(block, block.mask(device)) for block in blocks]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        """All are ``[1, heads, tokens, width]``; the result is ``[1, tokens, heads, width]``."""
        counts = [len(self._rows), *(block.count for block, _ in self._blocks)]
        queries, keys, values = (states.split_with_sizes(counts, 2) for states in (query, key, value))
        of_rows = self._rows.attend(layer, _as_rows(queries[0]), _as_rows(keys[0]), _as_rows(values[0]), attend)
        found = [of_rows.transpose(0, 1)]
        for number, (block, mask) in enumerate(self._blocks, 1):
            seen = block.write(2 * layer, keys[number]), block.write(2 * layer + 1, values[number])
            found.append(attend(queries[number], *seen, None if mask is None else mask.to(query.device)))
        return found[0] if len(found) == 1 else torch.cat(found, 1)


def _as_rows(states: Tensor) -> Tensor:
    """``[1, heads, tokens, width]`` as rows of one token, ``[tokens, heads, 1, width]``."""
    return states.transpose(0, 2)
