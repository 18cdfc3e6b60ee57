"""How much of the waiting prompts to read in one step: a budget of time, not of tokens.

Reading holds up every answer under way. What a token of a prompt costs differs by orders of magnitude between machines
and models and grows with its position, so the number of tokens is steered by what the last blocks took: a step that
reads may take twice as long as one that does not, however long a neighbour's prompt. With nobody to hold
up, blocks are as long as aborts and newcomers may wait.
"""

from __future__ import annotations

__all__ = ["STEP_TOKENS", "Pace"]

STEP_TOKENS = 16
"""A step reads a multiple of this, except where a prompt ends. Fewer take hardly less time."""

_SHARE = 1.0
"""Time for prompts by time for answers, in a step that does both."""

_ALONE_S = 0.25
"""Time of a block when no answer is under way."""

_MOST_GROWTH = 2.0
"""From one block to the next."""

_SMOOTHING = 0.25
"""Weight of the newest step that did not read."""

_PLAIN_EVERY = 32
"""Of so many steps one reads nothing, to learn what the answers alone take by now."""


class Pace:
    """Steers the tokens per step between `STEP_TOKENS` and `most`."""

    def __init__(self, most: int) -> None:
        self._most = max(most, STEP_TOKENS)
        self._alone = min(16 * STEP_TOKENS, self._most)
        self._beside = STEP_TOKENS
        self._plain_s: float | None = None
        self._since_plain = 0

    def alone(self) -> int:
        """Prompt tokens to read when no answer is under way."""
        return self._alone

    def beside(self) -> int:
        """Prompt tokens to read in a step of answers under way; 0: none this time."""
        if self._plain_s is None or self._since_plain >= _PLAIN_EVERY:
            return 0
        return self._beside

    def took_alone(self, tokens: int, seconds: float) -> None:
        """Reading this many took this long."""
        if tokens >= self._alone:  # a prompt's short end says little about a whole block
            self._alone = self._steered(tokens, _ALONE_S / seconds)

    def took_beside(self, tokens: int, seconds: float) -> None:
        """So long took a step of answers under way that has read this many tokens as well."""
        if tokens == 0:
            before = self._plain_s or seconds
            self._plain_s = before + _SMOOTHING * (seconds - before)
            self._since_plain = 0
            return
        self._since_plain += 1
        if tokens >= self._beside and self._plain_s is not None:
            more_s = max(seconds - self._plain_s, 1e-6)
            self._beside = self._steered(tokens, _SHARE * self._plain_s / more_s)

    def _steered(self, tokens: int, factor: float) -> int:
        fitting = min(tokens * min(factor, _MOST_GROWTH), self._most)
        return max(int(fitting) // STEP_TOKENS, 1) * STEP_TOKENS
