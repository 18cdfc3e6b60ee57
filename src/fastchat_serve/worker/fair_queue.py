"""Who waits for a slot, and who is next: by priority, in turn between tenants, in order within one.

Each tenant has a line of its own, and the lines of one priority take turns (round robin, Nagle 1987). So how long a
tenant waits depends on how many others wait, not on how much they send. A tenant whose line was empty joins at the
end of the round, so nobody is passed over however many newcomers there are.

Nothing is kept of a tenant that has nothing waiting.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

__all__ = ["FairQueue", "Waiting"]


class Waiting(Protocol):
    """What can wait; told apart by identity."""

    priority: int
    """Lower is served earlier."""
    tenant: str


W = TypeVar("W", bound=Waiting)


class FairQueue(Generic[W]):
    """Every operation takes constant time, but for a search among the priorities that wait right now."""

    def __init__(self) -> None:
        self._rounds: dict[int, OrderedDict[str, OrderedDict[W, None]]] = {}  # by priority, then by tenant in turn
        self._priorities: list[int] = []  # the keys of `_rounds`, sorted
        self._crowds = _Crowds()

    def __bool__(self) -> bool:
        return bool(self._priorities)

    def add(self, waiting: W) -> None:
        """To the end of its tenant's line."""
        priority, tenant = waiting.priority, waiting.tenant
        lines = self._rounds.get(priority)
        if lines is None:
            lines = self._rounds[priority] = OrderedDict()
            insort(self._priorities, priority)
        line = lines.get(tenant)
        if line is None:
            line = lines[tenant] = OrderedDict()
        line[waiting] = None
        self._crowds.change(tenant, 1)

    def next(self) -> W:
        """Take out whose turn it is; the tenant's next turn is after everybody else's."""
        lines = self._rounds[self._priorities[0]]
        tenant, line = next(iter(lines.items()))
        waiting = next(iter(line))
        lines.move_to_end(tenant)
        self.remove(waiting)
        return waiting

    def remove(self, waiting: W) -> None:
        """Take out one that does not want to wait any more."""
        priority, tenant = waiting.priority, waiting.tenant
        lines = self._rounds[priority]
        line = lines[tenant]
        del line[waiting]
        if not line:
            del lines[tenant]
            if not lines:
                del self._rounds[priority]
                del self._priorities[bisect_left(self._priorities, priority)]
        self._crowds.change(tenant, -1)

    def gives_way(self, newcomer: W) -> W | None:
        """Who should leave a full queue so that `newcomer` can be added; None if nobody.

        It is the newest of the least important that the tenant with the most waiting has: unless `newcomer` matters
        less, or its own tenant would have as many as the other then. So every change brings the tenants closer
        to equal shares, and no two of them can push each other out in turn.
        """
        tenant, count = self._crowds.largest()
        if count < self._crowds.count(newcomer.tenant) + 2:
            return None
        for priority in reversed(self._priorities):
            if priority < newcomer.priority:
                return None
            if (line := self._rounds[priority].get(tenant)) is not None:
                return next(reversed(line))
        return None


class _Crowds:
    """How many wait for each tenant, and which tenant has the most, kept up to date in constant time."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._tenants: dict[int, OrderedDict[str, None]] = {}  # those with so many, by how many
        self._most = 0

    def count(self, tenant: str) -> int:
        return self._counts.get(tenant, 0)

    def largest(self) -> tuple[str, int]:
        """One of the tenants with the most, and how many; of nobody, none."""
        return (next(iter(self._tenants[self._most])), self._most) if self._most else ("", 0)

    def change(self, tenant: str, by: int) -> None:
        """One more, or one less."""
        before = self._counts.get(tenant, 0)
        after = before + by
        if before:
            equals = self._tenants[before]
            del equals[tenant]
            if not equals:
                del self._tenants[before]
        if after:
            self._counts[tenant] = after
            self._tenants.setdefault(after, OrderedDict())[tenant] = None
        else:
            del self._counts[tenant]
        if after > self._most or (before == self._most and before not in self._tenants):
            self._most = after  # it was the largest alone, and is now one less: so is the largest
