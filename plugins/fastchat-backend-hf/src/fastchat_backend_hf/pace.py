"""How much of the waiting prompts to read in one step: a budget of time, not of tokens.

Reading holds up every answer under way. What a token of a prompt costs differs by orders of magnitude between machines
and models and grows with its position, so the number of tokens is steered by what the last blocks took: a step that
reads may take twice as long as one that does not, however long a neighbour's prompt; three times while more wait for
their first token than for their next. With nobody to hold up, blocks are as long as aborts and newcomers may wait.
"""

from __future__ import annotations

__all__ = ["STEP_TOKENS", "Pace"]

STEP_TOKENS = 16
"""A step reads a multiple of this, except where a prompt ends. Fewer take hardly less time."""

_CROWDED = 2
"""Time for prompts by time for answers, in a step that does both, while more wait than are served. Otherwise 1."""

_ALONE_S = 0.25
"""Time of a block when no answer is under way."""

_MOST_GROWTH = 1.25
"""From one block to the next: a step that was fast by chance makes no long one."""

_LEAST_S = 1e-6
"""What a clock can tell from nothing."""

_PATIENCE = 1.1
"""By how much a step that does not read may seem slower than the one before: a hiccup makes no long block."""

_PLAIN_EVERY = 32
"""Of so many steps one reads nothing, to learn what the answers alone take by now."""


class Pace:
    """Steers the tokens per step between `STEP_TOKENS` and `most`."""

    def __init__(self, most: int) -> None:
        self._most = float(max(most, STEP_TOKENS))
        self._alone = min(16.0 * STEP_TOKENS, self._most)
        self._beside = float(STEP_TOKENS)
        """As many as take the time of a step that does not read."""
        self._plain_s: float | None = None
        self._since_plain = 0

    def alone(self) -> int:
        """Prompt tokens to read when no answer is under way."""
        return _whole(self._alone)

    def beside(self, *, crowded: bool) -> int:
        """Prompt tokens to read in a step of answers under way; 0: none this time. `crowded`: more wait than run."""
        if self._plain_s is None or self._since_plain >= _PLAIN_EVERY:
            return 0
        return _whole(min(self._beside * (_CROWDED if crowded else 1), self._most))

    def took_alone(self, tokens: int, seconds: float) -> None:
        """Reading this many took this long."""
        if tokens >= self.alone():  # a prompt's short end says little about a whole block
            self._alone = self._steered(self._alone, tokens * _ALONE_S / max(seconds, _LEAST_S))

    def took_beside(self, tokens: int, seconds: float) -> None:
        """So long took a step of answers under way that has read this many tokens as well."""
        if tokens == 0:
            self._plain_s = min(seconds, _PATIENCE * (self._plain_s or seconds))
            self._since_plain = 0
            return
        self._since_plain += 1
        if self._plain_s is not None and tokens >= _whole(self._beside):
            more_s = max(seconds - self._plain_s, _LEAST_S)
            self._beside = self._steered(self._beside, tokens * self._plain_s / more_s)

    def _steered(self, now: float, fitting: float) -> float:
        return max(min(fitting, now * _MOST_GROWTH, self._most), STEP_TOKENS)


def _whole(tokens: float) -> int:
    return int(tokens) // STEP_TOKENS * STEP_TOKENS
