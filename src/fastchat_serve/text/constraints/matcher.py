"""One answer's way through its constraint."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any, Self

from fastchat_serve.errors import EngineError

__all__ = ["Mask", "Matcher"]

_OVER_A_LIMIT = re.compile("too many|too complex|too large|fuel", re.IGNORECASE)
"""In the library's messages: its codes do not tell."""

Mask = Any
"""numpy's ``NDArray[np.uint32]``; numpy comes with the engine."""


class Matcher:
    """Which tokens may come next. `Constraints.compile` makes it; used on one thread at a time."""

    def __init__(self, inner: Any, end_ids: frozenset[int], words: int) -> None:
        """`inner` is llguidance's; `words` those of its masks."""
        self._inner, self._end_ids, self._words = inner, end_ids, words
        self._ended = False

    @property
    def complete(self) -> bool:
        """Nothing more may follow."""
        return self._ended or bool(self._inner.is_stopped())

    @property
    def satisfied(self) -> bool:
        """What was accepted is whole: the answer may end here."""
        return self._ended or bool(self._inner.is_accepting())

    def accept(self, token: int) -> None:
        """`token` was drawn. Raises `EngineError` if it may not come here, or if the constraint is too complex."""
        if token in self._end_ids and self.satisfied:
            self._ended = True
        elif not self._inner.consume_token(token):
            raise self._failure()

    def accept_all(self, tokens: Iterable[int]) -> None:
        """Tokens that an earlier run drew."""
        for token in tokens:
            self.accept(token)

    def write_mask(self, row: Mask, *, without: Collection[int] = ()) -> None:
        """Set bit *i* of `row`, one row of `Constraints.masks`, if token *i* may be drawn next.

        Tokens `without` may not, unless no others may.

        Lets other threads run. Raises `EngineError` if the constraint is too complex at this place of the answer, or if
        no token of the model can continue it.
        """
        row[self._words :] = 0
        self._inner.unsafe_compute_mask_ptr(row.ctypes.data, self._words * 4)
        if self._inner.is_error():
            raise self._failure()
        if without:
            rest = row.copy()
            for token in without:
                if token < 32 * self._words:
                    rest[token // 32] &= 0xFFFFFFFF ^ (1 << token % 32)
            if rest.any():
                row[:] = rest

    def copy(self) -> Self:
        """Another way from the same place."""
        return type(self)(self._inner.deep_copy(), self._end_ids, self._words)

    def _failure(self) -> EngineError:
        if _OVER_A_LIMIT.search(str(self._inner.get_error())):
            return EngineError("The constraint is too complex to go on with the answer.", code="constraint_too_complex")
        return EngineError("The answer cannot go on under its constraint.", code="constraint_dead_end")
