"""Progress of long work where nobody looks at a terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

__all__ = ["LogProgress"]

logger = logging.getLogger(__name__)


INTERVAL_S = 5.0


class LogProgress:
    """A `hookspecs.Progress`: a log line when a stage begins, and one every few seconds while it lasts.

    Args:
        clock: Monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told_at: dict[str, float] = {}

    def __call__(self, stage: str, fraction: float | None = None) -> None:
        now = self._clock()
        if now - self._told_at.get(stage, -INTERVAL_S) >= INTERVAL_S:
            logger.info("%s%s", stage, f": {fraction:.0%}" if fraction else "")
            self._told_at[stage] = now
