"""A worker's slots and the queue before them: bounded, by priority, first come first served.

Plain bookkeeping without waiting: who wants a slot leaves a callable, and that is called, at once or
later, when a slot is theirs. So a request needs no task of its own while it queues.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

import anyio

from fastchat_serve.errors import Overloaded

__all__ = ["Slots", "Ticket"]


class Ticket:
    """A place in the queue, then a slot. `Slots.release` gives back either.

    Args:
        use: Called once, when a slot is granted.
        priority: Lower is served earlier.
    """

    __slots__ = ("granted", "order", "released", "since_s", "use")

    def __init__(self, use: Callable[[], None], priority: int = 0) -> None:
        self.use = use
        self.order = (priority, 0)
        self.granted = self.released = False
        self.since_s = 0.0

    def __lt__(self, other: Ticket) -> bool:
        return self.order < other.order


class Slots:
    """`count` slots and at most `queue_limit` waiting.

    Args:
        clock: Monotonic time in seconds; used to learn how long a slot is held.
    """

    def __init__(self, count: int, queue_limit: int, clock: Callable[[], float]) -> None:
        self.count, self.queue_limit = count, queue_limit
        self.running = self.waiting = 0
        self._clock = clock
        self._queue: list[Ticket] = []
        self._arrivals = itertools.count()
        self._mean_held_s = 1.0
        self._idle = anyio.Event()

    def acquire(self, ticket: Ticket) -> None:
        """Grant `ticket` a slot, from here if one is free, else later from a `release`.

        Raises:
            Overloaded: No slot is free and the queue is full; says when to come back.
        """
        if self.running < self.count:
            self._grant(ticket)
        elif self.waiting < self.queue_limit:
            self.waiting += 1
            ticket.order = (ticket.order[0], next(self._arrivals))
            heapq.heappush(self._queue, ticket)
        else:
            raise Overloaded(
                f"All {self.count} slots are busy and {self.waiting} requests wait already. Try again later.",
                retry_after_s=self.expected_wait_s(),
            )

    def release(self, ticket: Ticket) -> None:
        """Give back a slot, or leave the queue. Idempotent."""
        if ticket.released:
            return
        ticket.released = True
        if ticket.granted:
            self.running -= 1
            self._mean_held_s += 0.1 * (self._clock() - ticket.since_s - self._mean_held_s)
            self._grant_next()
        else:
            self.waiting -= 1
            if len(self._queue) > 2 * self.waiting + 16:  # many left early: forget their tickets
                self._queue = [other for other in self._queue if not other.released]
                heapq.heapify(self._queue)
        if not self.running and not self.waiting:
            self._idle.set()

    def expected_wait_s(self) -> float:
        """Whole seconds until a request that came now would get a slot, judged by how long slots are held."""
        return float(max(1, math.ceil((self.waiting + 1) * self._mean_held_s / self.count)))

    async def wait_idle(self) -> None:
        """Return when nothing runs and nothing waits."""
        while self.running or self.waiting:
            self._idle = anyio.Event()
            await self._idle.wait()

    def _grant(self, ticket: Ticket) -> None:
        self.running += 1
        ticket.granted, ticket.since_s = True, self._clock()
        ticket.use()

    def _grant_next(self) -> None:
        while self._queue and self.running < self.count:
            ticket = heapq.heappop(self._queue)
            if not ticket.released:
                self.waiting -= 1
                self._grant(ticket)
