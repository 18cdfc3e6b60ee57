"""What Ctrl-C does, decided for a stretch of code. Only in the main thread, where Python handles signals."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["on_interrupt"]


@contextmanager
def on_interrupt(act: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Have Ctrl-C do `act`, a signal handler, from here to the end of the block."""
    before = signal.signal(signal.SIGINT, act)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
