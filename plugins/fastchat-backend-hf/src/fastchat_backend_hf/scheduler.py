"""Who is in the batch: admission by cache memory, turns at reading prompts, and putting back when memory runs out.

Answers are admitted by what they hold now, not by what they may come to: a request without
`max_tokens` would otherwise reserve the whole context. When those admitted have grown out of the budget, the
latest of the lowest priority is put back and later starts again from its tokens, which are drawn as before.
The earliest answer always stays and alone always fits, so there is always progress.

Prompts take turns, block by block, so that a short one is not stuck behind a long one.
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
        """False: its prompt is read alone."""
        ...

    @property
    def unread(self) -> int:
        """Tokens to be read before it can be a row."""
        ...

    @property
    def begun(self) -> bool:
        """Whether some of its tokens are read."""
        ...

    def __len__(self) -> int: ...


S = TypeVar("S", bound=Schedulable)

Fits = Callable[[Sequence[int]], bool]


class Scheduler(Generic[S]):
    """Those waiting, those whose prompt is being read, and those running, in the order of the runner's rows."""

    def __init__(self, fits: Fits, *, max_batch: int) -> None:
        self._fits, self._max_batch = fits, max_batch
        self.running: list[S] = []
        self.reading: list[S] = []
        """The next in turn first."""
        self._waiting: list[tuple[tuple[int, int], S]] = []

    def __len__(self) -> int:
        return len(self.running) + len(self.reading) + len(self._waiting)

    def add(self, sequence: S) -> None:
        heapq.heappush(self._waiting, (sequence.order, sequence))

    def surplus(self) -> S | None:
        """Whom to put back before the next step, None if all fit with one token more."""
        admitted = [*self.running, *self.reading]
        if len(admitted) <= 1 or self._fits([len(sequence) for sequence in admitted]):
            return None
        return max(admitted, key=lambda sequence: sequence.order)

    def admit(self) -> Iterator[S]:
        """Let those in whose turn it is, while there is room; the caller appends each to `reading`."""
        while self._waiting and len(self.running) + len(self.reading) < self._max_batch:
            candidate = self._waiting[0][1]
            if (self.running or self.reading) and not self._has_room_for(candidate):
                return
            heapq.heappop(self._waiting)
            yield candidate

    def next_block(self, tokens: int) -> tuple[list[S], int]:
        """Whose prompts to read in the next pass, and at most how many tokens of each.

        The next in turn and, if it is whole and fits in `tokens`, such others as do so too, padded to the
        longest.
        """
        first = self.reading[0]
        group, longest = [first], first.unread
        if not _joins_a_pass(first) or longest > tokens:
            return group, tokens
        for other in filter(_joins_a_pass, self.reading[1:]):
            padded = max(longest, other.unread)
            if (len(group) + 1) * padded <= tokens:
                group.append(other)
                longest = padded
        return group, longest

    def end_turn(self, sequence: S) -> None:
        """It has read a block; the others are next."""
        self.reading.remove(sequence)
        self.reading.append(sequence)

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

    def _has_room_for(self, candidate: S) -> bool:
        admitted = (*self.running, *self.reading, candidate)
        return self._fits([len(sequence) + _HEADROOM for sequence in admitted])


def _joins_a_pass(sequence: Schedulable) -> bool:
    return sequence.scored and not sequence.begun
