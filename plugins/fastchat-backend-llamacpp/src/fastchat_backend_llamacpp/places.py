"""Who has which place in the cache, and what earlier answers left there.

A place is one of llama.cpp's sequences. All share the cells of one cache; an answer that ends leaves its tokens where
they are until their cells are needed, or its place. A prompt of the same salt that begins with the same tokens takes
the place over if it goes on where that ended, otherwise shares its first cells, and reads only the rest. The salt is
the tenant's mark and the adapter's name, so that nobody can find out, not even by time, what another has sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

__all__ = ["Cache", "Places", "Salt"]

Salt = tuple[str, str]


class Cache(Protocol):
    """What `Places` needs of a context."""

    def forget(self, sequence: int, start: int = 0) -> bool: ...
    def share(self, source: int, target: int, end: int) -> None: ...


class _Remains(NamedTuple):
    salt: Salt
    tokens: Sequence[int]


class Places:
    """`count` places in `cache`. Those not in use hold nothing, or what an answer left."""

    def __init__(self, cache: Cache, count: int, *, keeps: bool) -> None:
        """`keeps`: leave what was read for others, which the cache must be able to cut anywhere."""
        self._cache, self._keeps = cache, keeps
        self._empty = list(reversed(range(count)))
        self._left: dict[int, _Remains] = {}
        """By place, the least recently used first."""

    @property
    def left_tokens(self) -> int:
        """Cells that nobody uses now."""
        return sum(len(remains.tokens) for remains in self._left.values())

    def take(self, tokens: Sequence[int], salt: Salt, *, reuse: bool) -> tuple[int, int]:
        """A place for `tokens`, and how many of them it holds already: never all, since the last is to be read.

        There must be a place that is not in use.
        """
        shared = {place: _common(remains, tokens, salt) for place, remains in self._left.items()} if reuse else {}
        best = max(shared, key=shared.__getitem__, default=None)
        if best is None or shared[best] == 0:
            return self._empty_place(), 0
        goes_on = shared[best] >= len(self._left[best].tokens) - 1
        if goes_on or not self._empty:
            del self._left[best]
            self._cache.forget(best, shared[best])
            return best, shared[best]
        self._left[best] = self._left.pop(best)  # the latest to be dropped
        place = self._empty.pop()
        self._cache.share(best, place, shared[best])
        return place, shared[best]

    def give_back(self, place: int, tokens: Sequence[int], salt: Salt) -> None:
        """An answer has ended; `tokens` are what its place holds."""
        if self._keeps and tokens:
            self._left[place] = _Remains(salt, tokens)
        else:
            self.clear(place)

    def clear(self, place: int) -> None:
        """Likewise, but nothing of it is kept."""
        self._cache.forget(place)
        self._empty.append(place)

    def make_room(self) -> bool:
        """Drop what was not used for longest; False if nothing is left."""
        if not self._left:
            return False
        place = next(iter(self._left))
        del self._left[place]
        self.clear(place)
        return True

    def _empty_place(self) -> int:
        if not self._empty:
            self.make_room()
        return self._empty.pop()


def _common(remains: _Remains, tokens: Sequence[int], salt: Salt) -> int:
    """How many tokens at the beginning are the same, except the last of `tokens`."""
    if remains.salt != salt:
        return 0
    most = min(len(remains.tokens), len(tokens) - 1)
    return next((i for i in range(most) if remains.tokens[i] != tokens[i]), most)
