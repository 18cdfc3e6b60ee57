"""How often a broken engine is opened anew before it is left alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["MOST", "WITHIN_S", "Restarts"]

MOST = 3
WITHIN_S = 60.0


class Restarts:
    """At most `MOST` within any `WITHIN_S`: Erlang's restart intensity. What breaks more often is not helped by it.

    Args:
        clock: Monotonic time in seconds.

    Attributes:
        count: All there ever were.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._recent: deque[float] = deque()
        self.count = 0

    def allow(self) -> bool:
        """Whether there may be one more now; if so, it counts."""
        now = self._clock()
        while self._recent and now - self._recent[0] >= WITHIN_S:
            self._recent.popleft()
        if len(self._recent) >= MOST:
            return False
        self._recent.append(now)
        self.count += 1
        return True
