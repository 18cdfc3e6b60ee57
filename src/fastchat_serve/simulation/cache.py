"""Which blocks of prompts a worker still has from earlier requests: the newest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

__all__ = ["PrefixCache"]


class PrefixCache:
    """Blocks by their ids, which are equal where everything up to the block's end is.

    Args:
        tokens: That fit.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens, self._used = tokens, 0
        self._blocks: OrderedDict[int, int] = OrderedDict()

    def read(self, blocks: Sequence[int], block_tokens: int) -> int:
        """Read a prompt that begins with these blocks. How many of its tokens were there already."""
        found = 0
        while found < len(blocks) and blocks[found] in self._blocks:
            found += 1
        for block in reversed(blocks):  # a beginning is forgotten after what follows it
            if block in self._blocks:
                self._blocks.move_to_end(block)
            else:
                self._blocks[block] = block_tokens
                self._used += block_tokens
        while self._used > self._tokens:
            self._used -= self._blocks.popitem(last=False)[1]
        return found * block_tokens

    def clear(self) -> None:
        self._blocks.clear()
        self._used = 0
