"""Who is in the batch: admission by cache memory, and putting back when it runs out.

Answers are admitted by what they hold now, not by what they may come to: a request without
`max_tokens` would otherwise reserve the whole context. When the rows have grown out of the budget, the
latest of the lowest priority is put back and later starts again from its tokens, which are drawn as before.
The earliest answer always stays and alone always fits, so there is always progress.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

__all__ = ["Schedulable", "Scheduler"]

_HEADROOM = 16
"""Tokens that a newcomer and all others must have room for, so that nobody is put back at once."""


class Schedulable(Protocol):
    """What the scheduler knows of a sequence. Its length is what its row holds after the next step."""

    @property
    def order(self) -> tuple[int, int]:
        """Unique; lower is served earlier."""
        ...

    @property
    def scored(self) -> bool:
        """False: it needs a pass of its own to begin."""
        ...

    def __len__(self) -> int: ...


S = TypeVar("S", bound=Schedulable)

Fits = Callable[[Sequence[int]], bool]


class Scheduler(Generic[S]):
    """The running sequences, in the order of the runner's rows, and the waiting ones."""

    def __init__(self, fits: Fits, *, max_batch: int, prefill_tokens: int) -> None:
        self._fits, self._max_batch, self._prefill_tokens = fits, max_batch, prefill_tokens
        self.running: list[S] = []
        self._waiting: list[tuple[tuple[int, int], S]] = []

    def __len__(self) -> int:
        return len(self.running) + len(self._waiting)

    def __iter__(self) -> Iterator[S]:
        yield from self.running
        yield from (sequence for _, sequence in self._waiting)

    def add(self, sequence: S) -> None:
        heapq.heappush(self._waiting, (sequence.order, sequence))

    def surplus(self) -> int | None:
        """The row to put back before the next step, None if all fit with one token more."""
        if len(self.running) <= 1 or self._fits([len(sequence) for sequence in self.running]):
            return None
        return max(range(len(self.running)), key=lambda row: self.running[row].order)

    def admissible(self) -> list[S]:
        """Take the waiting sequences that join now, in their order, out of the queue.

        A step's worth of prompts: together, padded, they stay within `prefill_tokens`. A sequence that wants its
        prompt scored comes alone.
        """
        joining: list[S] = []
        while self._waiting and len(self.running) + len(joining) < self._max_batch:
            candidate = self._waiting[0][1]
            if (self.running or joining) and not self._has_room([*joining, candidate]):
                break
            if joining and not self._one_pass([*joining, candidate]):
                break
            heapq.heappop(self._waiting)
            joining.append(candidate)
            if not candidate.scored:
                break
        return joining

    def remove_row(self, row: int) -> S:
        """Take a running sequence out; the last row moves to its place, as in the runner."""
        sequence = self.running[row]
        self.running[row] = self.running[-1]
        self.running.pop()
        return sequence

    def remove_waiting(self, unwanted: Callable[[S], bool]) -> list[S]:
        """Take out and return all waiting sequences for which `unwanted` holds."""
        removed = [sequence for _, sequence in self._waiting if unwanted(sequence)]
        if removed:
            self._waiting = [entry for entry in self._waiting if entry[1] not in removed]
            heapq.heapify(self._waiting)
        return removed

    def _has_room(self, joining: Sequence[S]) -> bool:
        return self._fits([len(sequence) + _HEADROOM for sequence in (*self.running, *joining)])

    def _one_pass(self, joining: Sequence[S]) -> bool:
        padded = len(joining) * max(len(sequence) for sequence in joining)
        return padded <= self._prefill_tokens and joining[-1].scored
