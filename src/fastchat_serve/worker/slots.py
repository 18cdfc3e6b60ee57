"""A worker's slots and the bounded queue before them.

Plain bookkeeping without waiting: who wants a slot leaves a callable, and that is called, at once or
later, when a slot is theirs. So a request needs no task of its own while it queues. `fair_queue.py`
says who is next.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import anyio

from fastchat_serve.errors import Overloaded
from fastchat_serve.worker.fair_queue import FairQueue

__all__ = ["Slots", "Ticket"]


class Ticket:
    """A place in the queue, then a slot. `Slots.release` gives back either.

    Args:
        use: Called once, when a slot is granted. It may release the ticket itself, and must not raise.
        give_way: Called with the reason if the place in the queue is taken away: the ticket is void then.
        priority: Lower is served earlier.
        tenant: Who asks; equals take turns.
    """

    __slots__ = ("give_way", "granted_at", "held", "priority", "tenant", "use")

    def __init__(
        self,
        use: Callable[[], None],
        give_way: Callable[[Overloaded], None],
        priority: int = 0,
        tenant: str = "",
    ) -> None:
        self.use, self.give_way, self.priority, self.tenant = use, give_way, priority, tenant
        self.held = False  # a place or a slot is theirs
        self.granted_at: float | None = None


class Slots:
    """`count` slots and at most `queue_limit` waiting.

    Args:
        clock: Monotonic time in seconds; used to learn how long a slot is held.
        changed: Called when others run or wait than before.
    """

    def __init__(
        self,
        count: int,
        queue_limit: int,
        clock: Callable[[], float],
        changed: Callable[[], object] = lambda: None,
    ) -> None:
        self.count, self.queue_limit = count, queue_limit
        self.running = self.waiting = 0
        self._clock, self._changed = clock, changed
        self._queue: FairQueue[Ticket] = FairQueue()
        self._mean_held_s = 1.0
        self._granted_at_sum = 0.0  # over those that run
        self._granting = False
        self._idle = anyio.Event()

    @property
    def full(self) -> bool:
        """All slots are taken, and all places in the queue."""
        return self.waiting >= self.queue_limit and self.running >= self.count

    def acquire(self, ticket: Ticket) -> None:
        """Grant `ticket` a slot, from here if one is free, else later from a `release`.

        If the queue is full, a tenant that has more waiting than others makes room.

        Raises:
            Overloaded: No slot is free and no place in the queue; says when to come back.
        """
        gives_way = None
        if self.full:
            gives_way = self._queue.gives_way(ticket)
            if gives_way is None:
                raise self._overloaded(f"All {self.count} slots are busy and {self.waiting} requests wait already.")
            self.release(gives_way)
        ticket.held = True
        self._changed()
        if self.running < self.count and not self._granting:
            self._grant(ticket)
            return
        self.waiting += 1
        self._queue.add(ticket)
        if gives_way is not None:
            gives_way.give_way(self._overloaded("This request gave up its place in the queue to a client with fewer."))

    def release(self, ticket: Ticket) -> None:
        """Give back a slot, or leave the queue. Idempotent."""
        if not ticket.held:
            return
        ticket.held = False
        self._changed()
        if ticket.granted_at is None:
            self.waiting -= 1
            self._queue.remove(ticket)
        else:
            self.running -= 1
            self._granted_at_sum -= ticket.granted_at
            self._mean_held_s += 0.1 * (self._clock() - ticket.granted_at - self._mean_held_s)
            if self.waiting and not self._granting:
                self._grant(self._next())
        if not self.running and not self.waiting:
            self._granted_at_sum = 0.0  # no rounding error outlives an idle moment
            self._idle.set()

    def expected_wait_s(self) -> float:
        """Whole seconds until a request that came now would get a slot.

        Judged by how long slots were held of late, or are held already: a worker whose first answers take minutes
        has not given one back yet.
        """
        held_s = self._mean_held_s
        if self.running:
            held_s = max(held_s, self._clock() - self._granted_at_sum / self.running)
        return float(max(1, math.ceil((self.waiting + 1) * held_s / self.count)))

    async def wait_idle(self) -> None:
        """Return when nothing runs and nothing waits. Any number may wait for that."""
        while self.running or self.waiting:
            if self._idle.is_set():
                self._idle = anyio.Event()
            await self._idle.wait()

    def _grant(self, ticket: Ticket) -> None:
        """Hand a free slot to `ticket`, and slots that come free by that to who waits.

        However many tickets are released by their own `use`, the loop goes on, and the stack does not grow.
        """
        self._granting = True
        try:
            while True:
                self.running += 1
                ticket.granted_at = now = self._clock()
                self._granted_at_sum += now
                ticket.use()
                if not self.waiting or self.running >= self.count:
                    return
                ticket = self._next()
        finally:
            self._granting = False

    def _next(self) -> Ticket:
        self.waiting -= 1
        return self._queue.next()

    def _overloaded(self, why: str) -> Overloaded:
        return Overloaded(f"{why} Try again later.", retry_after_s=self.expected_wait_s())
