"""Why a scheduler of SGLang failed: it says so in its log alone, so a copy of that line is kept for the host."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

__all__ = ["keep_failures", "read_failure"]


class _Keeper(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        lines = record.getMessage().strip().splitlines()
        if lines and lines[0].startswith("Scheduler hit an exception"):
            _file().write_text(lines[-1], encoding="utf-8")


def keep_failures() -> None:
    """In a scheduler, before it begins."""
    logging.getLogger("sglang.srt.managers.scheduler").addHandler(_Keeper(logging.ERROR))


def read_failure() -> str:
    """In the host: the last line of the scheduler's traceback, empty if there is none."""
    try:
        return _file().read_text(encoding="utf-8")
    except OSError:
        return ""


def _file() -> Path:
    """In the folder for temporary files that a host shares with its schedulers, and with nobody else."""
    return Path(tempfile.gettempdir()) / "scheduler-failure"
