"""How long who comes and goes is kept out of rotation: each time longer, so that it takes ever fewer requests along.

A process that crashes as soon as it has work is started anew again and again, and a bad cable drops every connection:
what is known of either is its place, an address or the like, as each time it may be another process. Whoever stays for
a while counts as steady again.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

__all__ = ["FREE", "MOST_S", "STEADY_S", "Damping"]

FREE: Final = 3
"""So many short lives have no consequences: a restart, or two, is nothing."""

FIRST_S: Final = 1.0
MOST_S: Final = 30.0

STEADY_S: Final = 10.0
"""Who was in rotation for so long is steady."""

_REMEMBERED_S: Final = 120.0


class _Record(Struct):
    """Of one place.

    Attributes:
        lives: Short ones, since it was steady last.
        until: It is kept out till then.
        lost_at: When it was lost last.
    """

    lives: int = 0
    until: float = 0.0
    lost_at: float = 0.0


class Damping:
    """See the module. All times are those of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def lost(self, place: str, now: float, *, since: float) -> None:
        """Who was there is gone; it was in rotation `since` then, or was to be."""
        if now - since >= STEADY_S:
            self._records.pop(place, None)
            return
        record = self._records.setdefault(place, _Record())
        record.lives += 1
        record.lost_at = now
        if record.lives > FREE:
            record.until = now + min(FIRST_S * 2 ** (record.lives - FREE - 1), MOST_S)

    def until(self, place: str) -> float:
        """When who comes from there may be let in."""
        record = self._records.get(place)
        return 0.0 if record is None else record.until

    def forget(self, now: float) -> None:
        """Those of whom nothing was heard for long."""
        old = [place for place, record in self._records.items() if now - record.lost_at > _REMEMBERED_S]
        for place in old:
            del self._records[place]
