"""How many prompt tokens to read in a step: as many as take the time that a step of the answers alone takes.

So the answers' gaps about double while somebody's prompt is read, however long it is. While no answer is under way, a
block takes as long as aborts and newcomers may wait.
"""

from __future__ import annotations

__all__ = ["Pace"]

_LEAST = 16
"""Tokens of a block: fewer take hardly less time."""

_FIRST = 64
"""Tokens of a block before anything was measured."""

_ALONE_S = 0.25
"""Time of a block while no answer is under way."""

_LEAST_S = 1e-7
"""What a clock can tell from nothing."""

_WEIGHT = 0.3
"""Of the latest measurement."""


class Pace:
    """Keeps a running mean of what answers and prompts take."""

    def __init__(self, most: int) -> None:
        """`most`: tokens of a block."""
        self._most = most
        self._plain_s: float | None = None
        self._token_s: float | None = None

    def block(self, *, beside_answers: bool) -> int:
        """Prompt tokens to read in the next step."""
        if self._token_s is None:
            return min(_FIRST, self._most)
        seconds = _ALONE_S if not beside_answers or self._plain_s is None else self._plain_s
        return max(_LEAST, min(int(seconds / self._token_s), self._most))

    def took(self, seconds: float, *, rows: int, prompt_tokens: int) -> None:
        """A step of `rows` answers that read `prompt_tokens` as well has taken `seconds`."""
        if not prompt_tokens:
            self._plain_s = _mean(self._plain_s, seconds)
            return
        for_rows = (self._plain_s or 0.0) if rows else 0.0
        self._token_s = _mean(self._token_s, max(seconds - for_rows, _LEAST_S) / prompt_tokens)


def _mean(before: float | None, now: float) -> float:
    return now if before is None else before + _WEIGHT * (now - before)
