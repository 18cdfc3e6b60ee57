"""Members by a number, of which the least is wanted: kept in order one change at a time.

Members with equal numbers share a bucket, and a heap has the numbers: a change costs as little among thousands as
among three.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from random import Random

from fastchat_serve.controller.members import Member

__all__ = ["Least"]


class Least:
    """See the module.

    Args:
        of: The number of a member, from what was seen of it.
    """

    def __init__(self, of: Callable[[Member], float]) -> None:
        self._of = of
        self._buckets: dict[float, list[Member]] = {}
        self._numbers: list[float] = []
        """A heap of the keys of `_buckets`. Buckets may be empty until their number comes up."""
        self._places: dict[Member, tuple[float, int]] = {}

    def add(self, member: Member) -> None:
        self._put(member, self._of(member))

    def remove(self, member: Member) -> None:
        self._take(member, *self._places.pop(member))

    def change(self, member: Member) -> None:
        """What was seen of it is another."""
        number = self._of(member)
        before, place = self._places[member]
        if number != before:
            self._take(member, before, place)
            self._put(member, number)

    def draw(self, random: Random) -> Member:
        """One of those with the least number, all with the same chance. There must be a member."""
        while not (bucket := self._buckets[self._numbers[0]]):
            del self._buckets[heappop(self._numbers)]
        return bucket[int(random.random() * len(bucket))] if len(bucket) > 1 else bucket[0]

    def _put(self, member: Member, number: float) -> None:
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._new_bucket(number)
        self._places[member] = number, len(bucket)
        bucket.append(member)

    def _take(self, member: Member, number: float, place: int) -> None:
        bucket = self._buckets[number]
        last = bucket.pop()
        if last is not member:
            bucket[place] = last
            self._places[last] = number, place

    def _new_bucket(self, number: float) -> list[Member]:
        if len(self._numbers) > 2 * len(self._places) + 64:  # of numbers that did not come up for long
            self._buckets = {number: bucket for number, bucket in self._buckets.items() if bucket}
            self._numbers = list(self._buckets)
            heapify(self._numbers)
        bucket = self._buckets[number] = []
        heappush(self._numbers, number)
        return bucket
