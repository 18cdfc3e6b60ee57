"""Members by their speed: a weighted draw, and the sum, kept one change at a time.

A binary indexed tree (Fenwick 1994) of whole numbers: sums of floats would drift with every change.
"""

from __future__ import annotations

from random import Random
from typing import Final

from fastchat_serve.controller.members import Member

__all__ = ["Weights"]

_SCALE: Final = 2**1074
"""Every float is a whole number of its inverse."""


class Weights:
    """See the module.

    Attributes:
        total: The speed of all together.
    """

    def __init__(self) -> None:
        self._members: list[Member | None] = [None]
        """By their place in the tree, which begins with 1."""
        self._weights: list[int] = [0]
        self._sums: list[int] = [0]
        self._places: dict[Member, int] = {}
        self._free: list[int] = []
        self._total = 0
        self.total = 0.0

    def add(self, member: Member) -> None:
        place = self._free.pop() if self._free else self._new_place()
        self._members[place] = member
        self._places[member] = place
        self._set(place, _weight(member))

    def remove(self, member: Member) -> None:
        place = self._places.pop(member)
        self._set(place, 0)
        self._members[place] = None
        self._free.append(place)

    def change(self, member: Member) -> None:
        """What was seen of it is another, but not its speed: with another speed it is removed and added."""

    def draw(self, random: Random) -> Member | None:
        """One of the members, weighted by speed; None if none has any."""
        if not self._total:
            return None
        left, place, step = random.randrange(self._total), 0, 1 << (len(self._sums) - 1).bit_length()
        while step := step >> 1:
            if place + step < len(self._sums) and self._sums[place + step] <= left:
                place += step
                left -= self._sums[place]
        return self._members[place + 1]

    def _new_place(self) -> int:
        place = len(self._sums)
        below = place - (place & -place)
        self._members.append(None)
        self._weights.append(0)
        self._sums.append(self._upto(place - 1) - self._upto(below))
        return place

    def _upto(self, place: int) -> int:
        found = 0
        while place:
            found += self._sums[place]
            place &= place - 1
        return found

    def _set(self, place: int, weight: int) -> None:
        by = weight - self._weights[place]
        if not by:
            return
        self._weights[place] = weight
        self._total += by
        self.total = self._total / _SCALE
        while place < len(self._sums):
            self._sums[place] += by
            place += place & -place


def _weight(member: Member) -> int:
    numerator, denominator = member.seen.speed.as_integer_ratio()
    return numerator * (_SCALE // denominator)
