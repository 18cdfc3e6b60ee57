"""What rendering a chat template may take, and the count of what it has taken."""

from __future__ import annotations

import time

from msgspec import Struct

__all__ = ["LimitReached", "Meter", "TemplateLimits"]


class TemplateLimits(Struct, frozen=True, kw_only=True):
    """What rendering one conversation may take."""

    characters: int = 8_000_000
    """Written in all; also the length of any one string or list that an operator makes."""
    iterations: int = 200_000
    """Passes through all loops and macros together."""
    seconds: float = 0.8
    """Wall time, checked at every pass. With what lies between two of them a second is kept."""


class LimitReached(Exception):
    """The template did more than it may; the message says what."""


class Meter:
    """What one rendering has used so far."""

    def __init__(self, limits: TemplateLimits) -> None:
        self._limits = limits
        self._characters = 0
        self._iterations = 0
        self._deadline = time.monotonic() + limits.seconds

    def step(self) -> None:
        """Count a pass through a loop or macro."""
        self._iterations += 1
        if self._iterations > self._limits.iterations:
            raise LimitReached(f"more than {self._limits.iterations} loop iterations")
        if time.monotonic() > self._deadline:
            raise LimitReached(f"more than {self._limits.seconds:g} s")

    def write(self, count: int) -> None:
        """Count characters of output."""
        self._characters += count
        if self._characters > self._limits.characters:
            raise LimitReached(f"more than {self._limits.characters} characters")
