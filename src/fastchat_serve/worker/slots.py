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
        use: Called once, when a slot is granted. It may release the ticket itself, and must not raise.
        priority: Lower is served earlier.
    """

    __slots__ = ("arrival", "granted_at", "held", "priority", "use")

    def __init__(self, use: Callable[[], None], priority: int = 0) -> None:
        self.use, self.priority = use, priority
        self.arrival = 0
        self.held = False  # a place or a slot is theirs
        self.granted_at: float | None = None

    def __lt__(self, other: Ticket) -> bool:
        return (self.priority, self.arrival) < (other.priority, other.arrival)


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
        self._granting = False
        self._idle = anyio.Event()

    def acquire(self, ticket: Ticket) -> None:
        """Grant `ticket` a slot, from here if one is free, else later from a `release`.

        Raises:
            Overloaded: No slot is free and the queue is full; says when to come back.
        """
        if self.running >= self.count and self.waiting >= self.queue_limit:
            raise Overloaded(
                f"All {self.count} slots are busy and {self.waiting} requests wait already. Try again later.",
                retry_after_s=self.expected_wait_s(),
            )
        ticket.held, ticket.arrival = True, next(self._arrivals)
        self.waiting += 1
        heapq.heappush(self._queue, ticket)
        self._grant()

    def release(self, ticket: Ticket) -> None:
        """Give back a slot, or leave the queue. Idempotent."""
        if not ticket.held:
            return
        ticket.held = False
        if ticket.granted_at is not None:
            self.running -= 1
            self._mean_held_s += 0.1 * (self._clock() - ticket.granted_at - self._mean_held_s)
            self._grant()
        else:
            self.waiting -= 1
            if len(self._queue) > 2 * self.waiting + 16:  # many left early: forget their tickets
                self._queue = [other for other in self._queue if other.held]
                heapq.heapify(self._queue)
        if not self.running and not self.waiting:
            self._idle.set()

    def expected_wait_s(self) -> float:
        """Whole seconds until a request that came now would get a slot, judged by how long slots are held."""
        return float(max(1, math.ceil((self.waiting + 1) * self._mean_held_s / self.count)))

    async def wait_idle(self) -> None:
        """Return when nothing runs and nothing waits. Any number may wait for that."""
        while self.running or self.waiting:
            if self._idle.is_set():
                self._idle = anyio.Event()
            await self._idle.wait()

    def _grant(self) -> None:
        """Hand out the slots that are free, in order."""
        if self._granting:
            return  # a ticket was released by its own `use`: the loop below goes on, however many do so
        self._granting = True
        try:
            while self._queue and self.running < self.count:
                ticket = heapq.heappop(self._queue)
                if ticket.held:
                    self.waiting -= 1
                    self.running += 1
                    ticket.granted_at = self._clock()
                    ticket.use()
        finally:
            self._granting = False
