"""Finding stop strings in text that arrives in pieces.

Which stop string ends an answer depends on the text alone, never on how it is cut: the match that
*starts* first wins, and of several that start together the shortest. A match may therefore have to
wait: with the stops ``abcd`` and ``bc``, the text ``abc`` is undecided until the next character.

The automaton is Aho and Corasick's, built only as far as the text goes: a stop string of a megabyte,
or ten thousand of them, cost nothing until text matches them, and then time linear in that text.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from fastchat_serve.errors import InvalidRequest

__all__ = ["StopStrings"]


class StopStrings:
    """The stop strings of one answer, and the text that may still turn out to be one of them.

    Attributes:
        matched: The stop string that ended the answer; None until there is one.
        remainder: What had come in after the match when it was found.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises `InvalidRequest` for an empty stop string, which would end every answer at once."""
        if not all(stops):
            raise InvalidRequest("A stop string must not be empty.", param="stop")
        self.matched: str | None = None
        self.remainder = ""
        self._stops = sorted(stops)
        self._first_characters = frozenset(stop[0] for stop in self._stops)
        self._root = _Node(low=0, high=len(self._stops), depth=0)
        self._node = self._root
        self._released = 0
        self._candidate: _Match | None = None

    def feed(self, text: str) -> str:
        """The text that may go out now that `text` has come in.

        Held back is the longest end of the text so far that begins a stop string without completing it.
        """
        if self.matched is not None:
            return ""
        if self._node is self._root and self._first_characters.isdisjoint(text):
            self._released += len(text)
            return text

        held_before = self._node
        end = self._released + held_before.depth
        for char in text:
            end += 1
            self._step(char, end)
            if self.matched is not None and self._candidate is not None:
                return self._split(held_before, text, self._candidate)
        return self._release(held_before, text, until=end - self._node.depth)

    def flush(self) -> str:
        """The text held back, for an answer that has ended otherwise.

        Sets `matched` if a stop string was complete and only waited for one that started before it.
        """
        if self.matched is not None:
            return ""
        held, self._node = self._node, self._root
        if self._candidate is not None:
            self.matched = self._candidate.stop
            return self._split(held, "", self._candidate)
        return self._release(held, "", until=self._released + held.depth)

    def _step(self, char: str, end: int) -> None:
        """Take in one character, the `end`-th of the answer; set `matched` once a match is certain."""
        node = self._node
        if node is self._root and char not in self._first_characters:
            return
        self._node = node = node.children.get(char) or self._advance(node, char)

        best = node.stop or node.inner
        if best is not None:
            found = _Match(end - len(best), best)
            if self._candidate is None or found.start < self._candidate.start:
                self._candidate = found
        if self._candidate is not None and (node.stop or self._candidate.start <= end - node.depth):
            self.matched = self._candidate.stop  # nothing that starts earlier is possible any more

    def _split(self, held: _Node, text: str, match: _Match) -> str:
        """What lies before `match`, out of `held` and `text`; what lies after it becomes `remainder`."""
        waiting = self._prefix(held, held.depth) + text
        start = match.start - self._released
        self.remainder = waiting[start + len(match.stop) :]
        return waiting[:start]

    def _release(self, held: _Node, text: str, *, until: int) -> str:
        """What lies between the text released so far and character `until`, out of `held` and `text`."""
        count = until - self._released
        self._released = until
        if count <= held.depth:
            return self._prefix(held, count)
        return self._prefix(held, held.depth) + text[: count - held.depth]

    def _prefix(self, node: _Node, length: int) -> str:
        """The first `length` characters that led to `node`: they begin a stop string, so no copy is kept."""
        return self._stops[node.low][:length] if length else ""

    def _advance(self, node: _Node, char: str) -> _Node:
        """The node of the longest end of `node`'s text plus `char` that begins a stop string.

        Creates it, and with it the nodes of all shorter such ends, which its links lead to.
        """
        longest: _Node | None = None
        created: list[_Node] = []
        link: _Node | None = node
        fallback = self._root
        while link is not None:
            known = link.children.get(char)
            child = known or self._extend(link, char)
            if child is not None:
                longest = longest or child
                if known is not None:
                    fallback = known
                    break
                created.append(child)
            link = link.fallback
        for child in reversed(created):
            child.fallback = fallback
            child.inner = fallback.stop or fallback.inner
            fallback = child
        return longest or self._root

    def _extend(self, node: _Node, char: str) -> _Node | None:
        """A new child of `node`, or None if no stop string goes on with `char` there."""
        if node.stop is not None:
            return None  # a shorter stop string wins over those that begin with it
        depth = node.depth

        def char_here(stop: str) -> str:
            return stop[depth]

        low = bisect_left(self._stops, char, node.low, node.high, key=char_here)
        if low == node.high or self._stops[low][depth] != char:
            return None
        high = bisect_right(self._stops, char, low, node.high, key=char_here)
        child = _Node(low=low, high=high, depth=depth + 1)
        if len(self._stops[low]) == child.depth:
            child.stop = self._stops[low]
        node.children[char] = child
        return child


class _Node:
    """A beginning, `depth` characters long, that the sorted stop strings from `low` up to `high` share."""

    __slots__ = ("children", "depth", "fallback", "high", "inner", "low", "stop")

    def __init__(self, *, low: int, high: int, depth: int) -> None:
        self.low, self.high, self.depth = low, high, depth
        self.children: dict[str, _Node] = {}
        self.fallback: _Node | None = None
        """The longest proper end of this text that begins a stop string; None at the root."""
        self.stop: str | None = None
        """The stop string that this text is."""
        self.inner: str | None = None
        """The longest stop string that this text ends with, other than itself."""


class _Match(NamedTuple):
    start: int
    """Characters of the answer before it."""
    stop: str
