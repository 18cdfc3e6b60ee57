"""Progress of long work where nobody looks at a terminal."""

from __future__ import annotations

import logging

__all__ = ["LogProgress"]

logger = logging.getLogger(__name__)


class LogProgress:
    """A `hookspecs.Progress`: one log line per quarter of a stage."""

    def __init__(self) -> None:
        self._quarters: dict[str, int] = {}

    def __call__(self, stage: str, fraction: float | None = None) -> None:
        quarter = int((fraction or 0) * 4)
        if self._quarters.get(stage) != quarter:
            self._quarters[stage] = quarter
            logger.info("%s%s", stage, "" if fraction is None else f": {quarter * 25} %")
