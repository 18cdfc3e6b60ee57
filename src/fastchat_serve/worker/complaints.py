"""Warnings of what may go wrong again and again, for as long as nobody mends it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Complaints"]

logger = logging.getLogger(__name__)

_AGAIN_S: Final = 60.0
_PROBLEM_CHARS: Final = 1000


class Complaints:
    """What goes wrong again and again is said at once, and then once a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, dict[str, float]] = {}
        """When each problem was said, by what it is about: some come by turns."""
        self._swept_at = clock()

    def say(self, about: str, problem: str) -> bool:
        """`problem` may be a peer's own words: it makes one line of the log, however it is written.

        Returns:
            Whether it was said: then it is worth a line as well that it is over.
        """
        problem = " ".join(problem.split())[:_PROBLEM_CHARS]
        now = self._clock()
        if now - self._swept_at >= _AGAIN_S:
            self._sweep(now)
        said = self._said.setdefault(about, {})
        if now - said.get(problem, -math.inf) < _AGAIN_S:
            return False
        said[problem] = now
        logger.warning("%s: %s", about, problem)
        return True

    def forget(self, about: str) -> None:
        """It went well."""
        self._said.pop(about, None)

    def _sweep(self, now: float) -> None:
        """Of most that it was about, such as processes that are gone for good, nothing is said again."""
        self._swept_at = now
        for about, said in list(self._said.items()):
            lately = {problem: at for problem, at in said.items() if now - at < _AGAIN_S}
            if lately:
                self._said[about] = lately
            else:
                del self._said[about]
