"""How far the loading of an engine is, and when it will be done."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastchat_serve.hookspecs import Progress
from fastchat_serve.worker.base import LoadProgress

__all__ = ["Loading"]


class Loading:
    """A `hookspecs.Progress` for one worker: remembers what it is told, and passes it on.

    Args:
        tell: Told as well.
        clock: Monotonic time in seconds.

    Attributes:
        progress: What was told last; nothing is while nothing is loaded.
    """

    def __init__(self, tell: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._clock = tell, clock
        self._began_at = self._stage_began_at = clock()
        self._took_s: float | None = None  # the last time
        self.progress = LoadProgress()

    def __call__(self, stage: str, fraction: float | None = None) -> None:
        if stage != self.progress.stage:
            self._stage_began_at = self._clock()
        self.progress = LoadProgress(stage, fraction)
        self._tell(stage, fraction)

    def begin(self) -> None:
        self._began_at = self._stage_began_at = self._clock()
        self.progress = LoadProgress()

    def end(self, *, done: bool) -> None:
        """It is `done`, or was given up."""
        if done:
            self._took_s = self._clock() - self._began_at
        self.progress = LoadProgress()

    @property
    def took_s(self) -> float:
        """What it took the last time, at least a second; a second if it was never done."""
        return max(1.0, self._took_s or 0.0)

    @property
    def left_s(self) -> float:
        """Seconds until it is done, at least one.

        Judged by how long it took before; else by what is told of the stage it is in; else it takes as long again.
        """
        now, fraction = self._clock(), self.progress.fraction
        spent_s = now - self._began_at
        if self._took_s is not None and spent_s < self._took_s:
            return max(1.0, self._took_s - spent_s)
        if fraction is not None and 0 < fraction <= 1:
            return max(1.0, (now - self._stage_began_at) * (1 - fraction) / fraction)
        return max(1.0, spent_s) if self._took_s is None else 1.0
