"""One model: the workers that are listed for it, and pools of those that can take one kind of request or another."""

from __future__ import annotations

from bisect import bisect_left
from operator import attrgetter
from typing import Final

from fastchat_serve.capabilities import Capability
from fastchat_serve.controller.members import Kind, Member
from fastchat_serve.controller.pools import Pool
from fastchat_serve.worker.base import Worker

__all__ = ["Served"]

_MOST_POOLS: Final = 16
_MOST_QUESTIONS: Final = 256
"""Requests choose what they need, so what is remembered of that is bounded."""

_position = attrgetter("position")


class Served:
    """See the module.

    Attributes:
        members: In the order of their listing.
        pools: By the kinds of their members.
    """

    def __init__(self) -> None:
        self.members: list[Member] = []
        self._workers: tuple[Worker, ...] | None = None
        self._kinds: dict[Kind, int] = {}
        """Of the ready members, and how many they are."""
        self.pools: dict[frozenset[Kind], Pool] = {}
        self._answers: dict[tuple[frozenset[Capability], str], Pool] = {}

    @property
    def workers(self) -> tuple[Worker, ...]:
        if self._workers is None:
            self._workers = tuple(member.worker for member in self.members)
        return self._workers

    def add(self, member: Member) -> None:
        """List it, ready or not."""
        self.members.insert(bisect_left(self.members, member.position, key=_position), member)
        self._workers = None
        self.join(member)

    def remove(self, member: Member) -> None:
        self.leave(member)
        del self.members[bisect_left(self.members, member.position, key=_position)]
        self._workers = None

    def pool(self, needed: frozenset[Capability], fingerprint: str = "") -> Pool:
        """The ready members that have all of `needed`, and this fingerprint unless it is empty."""
        pool = self._answers.get((needed, fingerprint))
        if pool is None:
            fitting = frozenset(kind for kind in self._kinds if kind.fits(needed, fingerprint))
            pool = self.pools.get(fitting) or self._new_pool(fitting)
            if len(self._answers) >= _MOST_QUESTIONS:
                self._answers.clear()
            self._answers[needed, fingerprint] = pool
        return pool

    # ---------------------------------------------------------------- changes of what is seen of members

    def join(self, member: Member) -> None:
        """It takes requests now, if it does."""
        kind = member.seen.kind
        if kind is None:
            return
        if kind not in self._kinds:
            self._answers.clear()
        self._kinds[kind] = self._kinds.get(kind, 0) + 1
        for pool in self.pools.values():
            if kind in pool.kinds:
                pool.join(member)

    def leave(self, member: Member) -> None:
        """It takes no more requests, or will join as another kind."""
        kind = member.seen.kind
        if kind is None:
            return
        for pool in self.pools.values():
            if kind in pool.kinds:
                pool.leave(member)
        self._kinds[kind] -= 1
        if not self._kinds[kind]:
            del self._kinds[kind]
            self._answers.clear()

    def _new_pool(self, kinds: frozenset[Kind]) -> Pool:
        if len(self.pools) >= _MOST_POOLS:
            self.pools.clear()
            self._answers.clear()
        pool = Pool(tuple(kinds), (member for member in self.members if member.seen.kind in kinds))
        self.pools[kinds] = pool
        return pool
