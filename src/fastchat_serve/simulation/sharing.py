"""Streams that share a decoder: each gets the same speed, and the less, the more there are.

As in an engine that batches continuously. All streams are at the same level, so one number tells how far each is, and
only the one that ends first needs an event (processor sharing in virtual time, Parekh and Gallager 1993).
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Generic, TypeVar

from fastchat_serve.simulation.timeline import Timeline

__all__ = ["Sharing"]

S = TypeVar("S")


class Sharing(Generic[S]):
    """See the module.

    Args:
        alone: Tokens per second of a single stream.
        together: Of all streams, at most.
        done: Called with a stream that has all its tokens; it has left by then.
    """

    def __init__(self, timeline: Timeline, alone: float, together: float, done: Callable[[S], None]) -> None:
        self._timeline, self._alone, self._together, self._done = timeline, alone, together, done
        self._level = 0.0
        """Tokens that a stream would have that was there from the beginning."""
        self._as_of = 0.0
        self._began: dict[S, float] = {}
        """The level at which each stream came."""
        self._ends: list[tuple[float, int, S]] = []
        self._numbers, self._planned = count(), 0

    def add(self, stream: S, tokens: int) -> None:
        self._settle()
        self._began[stream] = self._level
        heappush(self._ends, (self._level + tokens, next(self._numbers), stream))
        self._plan()

    def remove(self, stream: S) -> int:
        """Whole tokens that a stream has got, which leaves before its end."""
        self._settle()
        got = int(self._level - self._began.pop(stream) + 1e-6)
        self._plan()
        return got

    def _settle(self) -> None:
        now = self._timeline.now
        if self._began:
            self._level += self._rate * (now - self._as_of)
        self._as_of = now

    @property
    def _rate(self) -> float:
        """Of each stream. There is one."""
        return min(self._alone, self._together / len(self._began))

    def _plan(self) -> None:
        """The next end, as things are; what was planned before is void."""
        self._planned += 1
        while self._ends and self._ends[0][2] not in self._began:
            heappop(self._ends)
        if self._ends:
            left = max(0.0, self._ends[0][0] - self._level)
            self._timeline.after(left / self._rate, self._end, self._planned)

    def _end(self, planned: int) -> None:
        if planned != self._planned:
            return
        self._settle()
        end, _, stream = heappop(self._ends)
        self._level = max(self._level, end)  # whatever was lost in rounding
        del self._began[stream]
        self._plan()
        self._done(stream)
