"""Notices when something blocks the event loop, for how long, and who it is.

One call that does not return stops every stream of the process. A tick on the loop notes that the loop
turns and how late it was; a thread beside it looks whether the tick still comes, and if not, whose code
the loop is in. All figures are those of the tick, so a block may be up to `TICK_S` longer than it says.

What the thread cannot see: code that blocks the loop and keeps the interpreter's lock as well stops the thread, too.
The tick still tells of it afterwards, but nobody can be named.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from fastchat_serve.plugins import installed, origin_of

__all__ = ["BLOCKED_S", "NAMED_S", "UNREADY_S", "WELL_S", "Watchdog"]

logger = logging.getLogger(__name__)

TICK_S = 0.05
LOOK_S = 0.1

BLOCKED_S = 0.05
"""From this delay on, it counts as a block."""
NAMED_S = 0.75
"""From this delay on, the log says who it is, once: less than a second after it began."""
UNREADY_S = 2.0
"""From this delay on, the server is not ready any more."""
WELL_S = 5.0
"""So long there must be no such block before the server is ready again."""

SHOWN_FRAMES = 20
"""Of the stack, the innermost."""


class Watchdog:
    """Watches the loop that `run` is called in, until `stop`.

    Args:
        clock: Monotonic time in seconds.

    Attributes:
        lag_s: By how much the newest tick was late.
        on_block: Called after every block with its seconds, on the loop.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.lag_s = 0.0
        self.on_block: Callable[[float], None] = lambda seconds: None
        self._clock = clock
        self._due = self._ticked_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._named_at: float | None = None  # `_ticked_at` of the block whose culprit was named
        self._unready: tuple[float, float] | None = None  # the newest block of that length: seconds, and when it ended
        self._over = anyio.Event()
        self._stopped = threading.Event()  # the same for the thread

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Watch. The thread has ended when it returns."""
        loop = asyncio.get_running_loop()
        self._schedule(loop, self._clock())
        thread = threading.Thread(target=self._watch, args=(threading.get_ident(),), name="watchdog", daemon=True)
        thread.start()
        task_status.started()
        try:
            await self._over.wait()
        finally:
            self._stopped.set()
            if self._timer is not None:
                self._timer.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(thread.join)

    def stop(self) -> None:
        """End `run`."""
        self._over.set()

    @property
    def complaint(self) -> str:
        """Why the server should get no requests now, for anybody to read; empty if it may.

        While the loop is blocked nobody can ask. So this speaks of a block that is over, until the loop has been well
        for `WELL_S`.
        """
        if self._unready is None or self._clock() - self._unready[1] >= WELL_S:
            return ""
        return f"The event loop was blocked for {self._unready[0]:.1f} s. Ready again {WELL_S:g} s after that."

    # ------------------------------------------------------------------------------------- on the loop

    def _schedule(self, loop: asyncio.AbstractEventLoop, now: float) -> None:
        self._ticked_at, self._due = now, now + TICK_S
        self._timer = loop.call_later(TICK_S, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = self._clock()
        self.lag_s = max(0.0, now - self._due)
        if self.lag_s > BLOCKED_S:
            self._note_block(self.lag_s, now)
        self._schedule(loop, now)

    def _note_block(self, seconds: float, now: float) -> None:
        self.on_block(seconds)
        if seconds >= UNREADY_S:
            self._unready = (seconds, now)
        if self._named_at == self._ticked_at:
            logger.warning("The event loop goes on after %.1f s.", seconds)
        elif seconds >= NAMED_S:
            logger.error(
                "The event loop was blocked for %.1f s by code that kept the interpreter's lock as well, "
                "or the whole process stood still.",
                seconds,
            )

    # ----------------------------------------------------------------------------------- in the thread

    def _watch(self, watched: int) -> None:
        """Look after the loop in the thread `watched`.

        Time counts only while this thread itself is on time: else a process that was stopped, or a machine that was
        asleep, would look like a loop that is blocked.
        """
        seen, silent_s, woke_at = self._ticked_at, 0.0, self._clock()
        while not self._stopped.wait(LOOK_S):
            now, ticked_at = self._clock(), self._ticked_at
            silent_s = silent_s + min(now - woke_at, 2 * LOOK_S) if ticked_at == seen else 0.0
            seen, woke_at = ticked_at, now
            if silent_s >= NAMED_S and self._named_at != ticked_at and (frame := sys._current_frames().get(watched)):
                self._named_at = ticked_at
                stack = "".join(traceback.format_stack(frame, SHOWN_FRAMES)).rstrip()
                logger.error("The event loop is blocked by %s. Everybody waits for it:\n%s", _culprit(frame), stack)
                del frame  # or what is in it lives until the next incident


def _culprit(innermost: FrameType) -> str:
    """Who is at work there: the innermost code of a plugin, or else of anybody but Python's own library."""
    plugins = {
        point.module.partition(".")[0]: f"plugin {name!r} ({origin_of(point)})"
        for name, points in installed().items()
        for point in points
    }
    plugins.pop(__name__.partition(".")[0], None)  # our own backends are no strangers
    strangers = None
    for frame in _outwards(innermost):
        package = str(frame.f_globals.get("__name__") or "").partition(".")[0]
        if package in plugins:
            return f"{plugins[package]}, {_place(frame)}"
        if strangers is None and package and package not in sys.stdlib_module_names:
            strangers = f"{package}, {_place(frame)}"
    return strangers or _place(innermost)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _place(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_qualname} in {code.co_filename}:{frame.f_lineno}"
