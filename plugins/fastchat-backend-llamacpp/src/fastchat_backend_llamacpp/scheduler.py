"""Who is in the batch: admission by what the cache holds, and putting back when it is full.

Answers are admitted by what they hold now, not by what they may come to: a request without `max_tokens` would otherwise
reserve the whole context. When those admitted have outgrown the cache, the latest of the lowest priority is put
back and later starts again from its tokens. The earliest always stays, and alone it always fits.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from fastchat_backend_llamacpp.sequences import TokenSequence

__all__ = ["Scheduler"]

_HEADROOM = 16
"""Tokens that a newcomer and all others must have room for, so that nobody is put back at once."""


class Scheduler:
    """Those waiting, and those admitted in the order of their turns at reading."""

    def __init__(self, *, cells: int, max_batch: int) -> None:
        self._cells, self._max_batch = cells, max_batch
        self.admitted: list[TokenSequence] = []
        self._waiting: list[tuple[tuple[int, int], TokenSequence]] = []

    def __len__(self) -> int:
        return len(self.admitted) + len(self._waiting)

    @property
    def used_tokens(self) -> int:
        """Cells that those admitted have after the next step, once all is read."""
        return sum(len(sequence.tokens) for sequence in self.admitted)

    def add(self, sequence: TokenSequence) -> None:
        heapq.heappush(self._waiting, (sequence.order, sequence))

    def surplus(self) -> TokenSequence | None:
        """Whom to put back before the next step; None if all fit."""
        if len(self.admitted) <= 1 or self.used_tokens <= self._cells:
            return None
        return self.latest()

    def latest(self) -> TokenSequence:
        """Of those admitted, who is served last."""
        return max(self.admitted, key=lambda sequence: sequence.order)

    def next_in(self) -> TokenSequence | None:
        """Take out of the waiting whose turn it is, if there is room for another."""
        if not self._waiting or len(self.admitted) >= self._max_batch:
            return None
        candidate = self._waiting[0][1]
        needed = self.used_tokens + len(candidate.tokens) + _HEADROOM * (len(self.admitted) + 1)
        if self.admitted and needed > self._cells:
            return None
        heapq.heappop(self._waiting)
        return candidate

    def end_turn(self, sequence: TokenSequence) -> None:
        """It has read a block; the others are next."""
        self.admitted.remove(sequence)
        self.admitted.append(sequence)

    def remove_waiting(self, unwanted: Callable[[TokenSequence], bool]) -> list[TokenSequence]:
        """Take out and return all waiting sequences for which `unwanted` holds."""
        removed = [sequence for _, sequence in self._waiting if unwanted(sequence)]
        if removed:
            self._waiting = [entry for entry in self._waiting if entry[1] not in removed]
            heapq.heapify(self._waiting)
        return removed
