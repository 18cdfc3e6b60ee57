"""The constraint "exactly one of these texts", as allowed tokens.

Texts are followed byte by byte, so every way to cut an option into tokens is allowed: the model
keeps its own habits, and its probabilities their meaning.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fastchat_serve import InvalidRequest, Unsupported

__all__ = ["ChoiceConstraint"]

_MAX_BYTES = 16_384
"""Of all options: every step looks at each of them, on the thread that all answers share."""

TokensByBytes = Mapping[bytes, Sequence[int]]


class ChoiceConstraint:
    """One answer's way through the options."""

    def __init__(self, options: Sequence[str], tokens: TokensByBytes, end_ids: Collection[int]) -> None:
        """`end_ids` end an option that is the beginning of another. Raises `InvalidRequest`."""
        if not options:
            raise InvalidRequest("A choice needs at least one option.", param="choice")
        if sum(len(option.encode()) for option in options) > _MAX_BYTES:
            raise InvalidRequest(f"A choice may have {_MAX_BYTES} bytes in all.", param="choice")
        self._tokens = tokens
        self._longest = max(map(len, tokens), default=0)
        self._end_ids = sorted(end_ids)
        self._open = [_Option(option.encode(), tokens, self._longest) for option in dict.fromkeys(options)]
        for number, option in enumerate(self._open):
            if not option.reachable[0]:
                raise Unsupported(
                    f"The tokens of this model cannot write option {number} of the choice.", param="choice"
                )
        self._written = 0
        self._ended = False
        self._next = self._pieces()

    @property
    def complete(self) -> bool:
        """Nothing more may follow."""
        return self._ended or all(len(option.data) == self._written for option in self._open)

    def allowed(self) -> list[int]:
        """The tokens that may be drawn next."""
        may_end = any(len(option.data) == self._written for option in self._open)
        return [*self._next, *self._end_ids] if may_end else list(self._next)

    def accept(self, token: int) -> None:
        """`token` was drawn."""
        piece = self._next.get(token)
        if piece is None:
            self._ended = True
            return
        self._open = [option for option in self._open if option.data.startswith(piece, self._written)]
        self._written += len(piece)
        self._next = self._pieces()

    def _pieces(self) -> dict[int, bytes]:
        """What each token that may come next writes."""
        pieces = {piece for option in self._open for piece in option.pieces(self._written)}
        return {token: piece for piece in pieces for token in self._tokens[piece]}


class _Option:
    """One text: `reachable[i]` tells whether tokens can write it from byte *i* to its end."""

    def __init__(self, data: bytes, tokens: TokensByBytes, longest: int) -> None:
        self.data, self._tokens, self._longest = data, tokens, longest
        self.reachable = [False] * len(data) + [True]
        for start in reversed(range(len(data))):
            self.reachable[start] = bool(self.pieces(start))

    def pieces(self, start: int) -> list[bytes]:
        """The tokens' texts that may come at byte `start`."""
        ends = range(start + 1, min(start + self._longest, len(self.data)) + 1)
        return [piece for end in ends if self.reachable[end] and (piece := self.data[start:end]) in self._tokens]
