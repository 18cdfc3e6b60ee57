"""Virtual time: what is to happen when, and a clock that jumps from one event to the next."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any

__all__ = ["Timeline"]


class Timeline:
    """Events in the order of their times; those of one time in the order in which they were planned.

    Attributes:
        now: Seconds since the beginning.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._numbers = count()

    def clock(self) -> float:
        """`now`, for code that wants a clock."""
        return self.now

    def at(self, time: float, call: Callable[..., object], *args: Any) -> None:
        """Have ``call(*args)`` happen at `time`; at once if that is over."""
        heappush(self._events, (max(time, self.now), next(self._numbers), call, args))

    def after(self, seconds: float, call: Callable[..., object], *args: Any) -> None:
        """The same, so many seconds from now."""
        self.at(self.now + seconds, call, *args)

    def run(self, until: Callable[[], bool]) -> None:
        """Let events happen until none is left, or `until` says that it is enough."""
        while self._events and not until():
            self.now, _, call, args = heappop(self._events)
            call(*args)
