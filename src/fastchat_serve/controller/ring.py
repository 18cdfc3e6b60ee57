"""Which members have a claim to a session, without a look at each of them.

Of few members all compete, by rendezvous hashing weighted by speed (Schindelhauer and Schomaker 2005): when one comes
or goes, only its own sessions move. Of many only those compete whose marks come next on a ring (Karger et al. 1997):
when one goes, about as many other sessions may move as it had, and no more. What a member claims depends on nothing but
its name and its speed, so all processes agree, whatever they did before.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain, islice
from operator import itemgetter
from struct import unpack
from typing import Final

from fastchat_serve.controller.members import Member

__all__ = ["COMPETITORS", "Ring"]

COMPETITORS: Final = 8
"""So many compete for a session; if none of them is to have it, the next so many do."""

_MOST_REMEMBERED: Final = 32_768
"""Sessions; some 200 bytes each."""

_MASK: Final = 2**64 - 1


class Ring:
    """See the module."""

    def __init__(self, members: Iterable[Member]) -> None:
        self._hashes: dict[Member, int] = {}
        marked: list[tuple[int, int, Member]] = []
        for member in members:
            self._hashes[member], *marks = _numbers(member.id)
            marked += ((mark, member.position, member) for mark in marks)
        marked.sort()
        self._marks = [mark for mark, _, _ in marked]
        self._owners = [member for _, _, member in marked]
        self._first: dict[str, Member] = {}
        """By session, as far as that was asked since the last change: sessions come again."""

    def add(self, member: Member) -> None:
        self._first.clear()
        self._hashes[member], *marks = _numbers(member.id)
        for mark in marks:
            place = bisect_left(self._marks, mark)
            self._marks.insert(place, mark)
            self._owners.insert(place, member)

    def remove(self, member: Member) -> None:
        self._first.clear()
        del self._hashes[member]
        for mark in islice(_numbers(member.id), 1, None):
            place = bisect_left(self._marks, mark)
            while self._owners[place] is not member:  # another may have the same mark
                place += 1
            del self._marks[place], self._owners[place]

    def claimants(self, session: str) -> Iterator[Member]:
        """All members, those with the strongest claim first."""
        first = self._first.get(session)
        if first is not None:
            yield first
        point = next(_numbers(session))
        around = self._around(bisect_left(self._marks, point))
        while competitors := list(islice(around, COMPETITORS)):
            for member in _in_order(competitors, point):
                if first is None:
                    self._remember(session, first := member)
                    yield first
                elif member is not first:
                    yield member

    def _around(self, start: int) -> Iterator[tuple[Member, int]]:
        """All members once, in the order in which they come on the ring, with their hashes."""
        met = set[Member]()
        for place in chain(range(start, len(self._owners)), range(start)):
            member = self._owners[place]
            if member not in met:
                met.add(member)
                yield member, self._hashes[member]

    def _remember(self, session: str, first: Member) -> None:
        if len(self._first) >= _MOST_REMEMBERED:
            self._first.clear()
        self._first[session] = first


def _in_order(competitors: Sequence[tuple[Member, int]], point: int) -> Iterator[Member]:
    """The strongest claim first: a number that is equal for the same member and session, and any for others."""
    claims: list[tuple[float, Member]] = []
    for member, mixed in competitors:
        mixed = (mixed ^ point) * 0x9E3779B97F4A7C15 & _MASK
        mixed = (mixed ^ mixed >> 29) * 0xD6E8FEB86659FD93 & _MASK
        # The chance is neither 0 nor 1. The less is taken, where equal ones keep their order.
        claims.append((member.seen.speed / math.log(((mixed >> 12) + 0.5) * 2**-52), member))
    yield min(claims, key=_claim)[1]
    claims.sort(key=_claim)
    for _, member in claims[1:]:
        yield member


_claim = itemgetter(0)


def _numbers(text: str) -> Iterator[int]:
    """Sixteen of 64 bits. The more marks a member has, the more equal are the chances to compete."""
    raw = text.encode("utf-8", "surrogatepass")
    return chain.from_iterable(unpack("<8Q", blake2b(raw, salt=salt).digest()) for salt in (b"hash", b"more"))
