"""One pass for the rows of a batch and a block of a prompt: their tokens side by side, each attending to its own.

On most machines a step's time is the reading of the weights. A block that rides along costs little more than
its own arithmetic, where a pass of its own would read them again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastchat_backend_hf.cells import BlockCache
from fastchat_backend_hf.kv import Attend, KvCache

__all__ = ["MixedPass"]


class MixedPass:
    """The pass's attention. Its one sequence is a token of each of `rows`, and then `block_tokens` of `block`."""

    def __init__(self, rows: KvCache, block: BlockCache, block_tokens: int, device: torch.device) -> None:
        """Both caches have been placed."""
        self._rows, self._block, self._block_tokens = rows, block, block_tokens
        self._mask: Tensor | None = None
        if block_tokens and block.start:
            ends = torch.arange(block.start, block.start + block_tokens, device=device)
            columns = torch.arange(block.start + block_tokens, device=device)
            self._mask = (columns <= ends[:, None])[None, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        """All are ``[1, heads, tokens, width]``; the result is ``[1, tokens, heads, width]``."""
        count = len(self._rows)
        of_rows = self._rows.attend(
            layer, _rows(query[:, :, :count]), _rows(key[:, :, :count]), _rows(value[:, :, :count]), attend
        ).transpose(0, 1)
        if not self._block_tokens:
            return of_rows
        keys = self._block.write(2 * layer, key[:, :, count:])
        values = self._block.write(2 * layer + 1, value[:, :, count:])
        mask = None if self._mask is None else self._mask.to(query.device)
        return torch.cat([of_rows, attend(query[:, :, count:], keys, values, mask)], 1)


def _rows(states: Tensor) -> Tensor:
    """``[1, heads, tokens, width]`` as rows of one token, ``[tokens, heads, 1, width]``."""
    return states.transpose(0, 2)
