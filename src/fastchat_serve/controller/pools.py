"""Those of a model's workers that can take a request: what a policy chooses from, kept up to date one change at a time.

A `Pool` has the ready members of certain kinds in two `Standing`s, those with room and those that are full. What a
policy may ask of all of them together is an index (`least.py`, `weights.py`, `ring.py`), which is made when it is
first asked for and follows every change from then on.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from operator import attrgetter
from random import Random
from types import MappingProxyType
from typing import Final, Protocol, overload

from fastchat_serve.controller.least import Least
from fastchat_serve.controller.members import Kind, Member, Seen
from fastchat_serve.controller.ring import Ring
from fastchat_serve.controller.weights import Weights
from fastchat_serve.policy import Candidate, Candidates
from fastchat_serve.worker.base import Worker

__all__ = ["NOTHING_KNOWN", "Pool", "Standing"]

NOTHING_KNOWN: Final[Mapping[str, int]] = MappingProxyType({})


class _Index(Protocol):
    """What follows the members of a standing."""

    def add(self, member: Member) -> None: ...
    def remove(self, member: Member) -> None: ...
    def change(self, member: Member) -> None: ...


class Standing(Candidates):
    """Members of a pool in the order of their listing, as policies see them.

    Attributes:
        known: For the decision that is made now: what those that have read of its prompt have read, by id, the most
            first.
    """

    def __init__(self, pool: Pool) -> None:
        self.queue_lengths = 0
        self.known = NOTHING_KNOWN
        self._pool = pool
        self._members: list[Member] = []
        self._positions: list[int] = []
        self._indexes: list[_Index] = []
        self._queues: Least | None = None
        self._works: Least | None = None
        self._weights: Weights | None = None

    # --------------------------------------------------------------------------------- its members

    @property
    def members(self) -> list[Member]:
        """Not to be changed."""
        return self._members

    def add(self, member: Member) -> None:
        place = bisect_left(self._positions, member.position)
        self._positions.insert(place, member.position)
        self._members.insert(place, member)
        self.queue_lengths += member.seen.queue_length
        for index in self._indexes:
            index.add(member)

    def remove(self, member: Member) -> None:
        place = self._place_of(member)
        del self._positions[place], self._members[place]
        self.queue_lengths -= member.seen.queue_length
        for index in self._indexes:
            index.remove(member)

    def change(self, member: Member, before: Seen) -> None:
        """What was seen of it was `before` so far."""
        self.queue_lengths += member.seen.queue_length - before.queue_length
        for index in self._indexes:
            index.change(member)

    def set_aside(self, ids: Iterable[str]) -> list[Member]:
        """Take out those with these ids, for one decision. To be given to `add` when it is made."""
        found = [member for id_ in ids if (member := self._pool.by_id.get(id_)) is not None]
        aside = [member for member in sorted(found, key=_position) if self._place_of(member) >= 0]
        for member in aside:
            self.remove(member)
        return aside

    # -------------------------------------------------------------------------- what policies see

    def __len__(self) -> int:
        return len(self._members)

    @overload
    def __getitem__(self, index: int) -> Candidate: ...
    @overload
    def __getitem__(self, index: slice) -> list[Candidate]: ...
    def __getitem__(self, index: int | slice) -> Candidate | list[Candidate]:
        if isinstance(index, slice):
            return [self._candidate(member) for member in self._members[index]]
        return self._candidate(self._members[index])

    def __iter__(self) -> Iterator[Candidate]:
        return map(self._candidate, self._members)

    @property
    def speeds(self) -> float:
        return self._weighted().total

    def shortest_queue(self, random: Random) -> int:
        if self._queues is None:
            self._queues = Least(_queue)
            self._follow(self._queues)
        return self._place_of(self._queues.draw(random))

    def least_work(self, random: Random) -> int:
        if self._works is None:
            self._works = Least(_work)
            self._follow(self._works)
        return self._place_of(self._works.draw(random))

    def by_speed(self, random: Random) -> int:
        member = self._weighted().draw(random)
        return random.randrange(len(self._members)) if member is None else self._place_of(member)

    def readers(self) -> list[int]:
        places, by_id = [], self._pool.by_id
        for id_ in self.known:
            if (member := by_id.get(id_)) is not None and (place := self._place_of(member)) >= 0:
                places.append(place)
        return places

    def claimants(self, session: str) -> Iterator[int]:
        for member in self._pool.ring.claimants(session):
            if (place := self._place_of(member)) >= 0:
                yield place

    # -----------------------------------------------------------------------------------------------

    def _candidate(self, member: Member) -> Candidate:
        seen = member.seen
        known = self.known.get(member.id, 0) if self.known else 0
        return Candidate(member.id, seen.speed, seen.queue_length, seen.work, known)

    def _place_of(self, member: Member) -> int:
        """Its index; -1 if it is not here."""
        place = bisect_left(self._positions, member.position)
        return place if place < len(self._members) and self._members[place] is member else -1

    def _weighted(self) -> Weights:
        if self._weights is None:
            self._weights = Weights()
            self._follow(self._weights)
        return self._weights

    def _follow(self, index: _Index) -> None:
        for member in self._members:
            index.add(member)
        self._indexes.append(index)


class Pool:
    """See the module.

    Args:
        kinds: Of its members.

    Attributes:
        open, full: Its members.
        by_id: All of them.
    """

    def __init__(self, kinds: Collection[Kind], members: Iterable[Member]) -> None:
        self.kinds = kinds
        self.by_id: dict[str, Member] = {}
        self.open, self.full = Standing(self), Standing(self)
        self._ring: Ring | None = None
        for member in members:
            self.join(member)

    @property
    def ring(self) -> Ring:
        """Of the full as well: that a worker is full moves nobody's sessions but its own."""
        if self._ring is None:
            self._ring = Ring(self.by_id.values())
        return self._ring

    def any(self) -> Worker | None:
        """One of its workers, one with room if there is one; None if it has no members."""
        members = self.open.members or self.full.members
        return members[0].worker if members else None

    def standing(self, seen: Seen) -> Standing:
        """Where a member belongs that is seen as this."""
        return self.full if seen.full else self.open

    def join(self, member: Member) -> None:
        self.by_id[member.id] = member
        self.standing(member.seen).add(member)
        if self._ring is not None:
            self._ring.add(member)

    def leave(self, member: Member) -> None:
        del self.by_id[member.id]
        self.standing(member.seen).remove(member)
        if self._ring is not None:
            self._ring.remove(member)


_position = attrgetter("position")


def _queue(member: Member) -> float:
    seen = member.seen
    return seen.queue_length / seen.speed if seen.speed > 0 else math.inf


def _work(member: Member) -> float:
    seen = member.seen
    return seen.work / seen.speed if seen.speed > 0 else math.inf
