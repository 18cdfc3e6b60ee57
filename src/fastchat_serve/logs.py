"""Log lines to a file descriptor, without ever making the event loop wait for it (F19).

Whoever logs puts a line into a bounded queue; one thread writes. A full disk, a reader that has gone, a
pipe that nobody empties: then lines are lost and counted, and serving goes on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["LogWriter", "logging_to"]

CAPACITY = 4096
"""Lines that may wait to be written."""
TELL_EVERY_S = 60.0
"""How often at most it is said that lines were lost."""
LAST_LINES_S = 1.0
"""For the lines that still wait when the process ends."""

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class LogWriter(logging.Handler):
    """Writes to the file descriptor `fd` from a thread of its own, until `close`.

    Args:
        clock: Monotonic time in seconds.

    Attributes:
        lost: How many lines were lost so far.
    """

    def __init__(self, fd: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.lost = 0
        self._fd, self._clock = fd, clock
        self._lines: deque[str] = deque()
        self._news = threading.Condition()
        self._ending = False
        self._told = 0  # of the lost lines
        self._told_at = -TELL_EVERY_S
        self._thread = threading.Thread(target=self._write_lines, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # arguments that do not fit their message must not end what was logged about
            line = f"{record.name}: a message could not be formatted: {record.msg!r}"
        with self._news:
            if len(self._lines) < CAPACITY:
                self._lines.append(line)
                self._news.notify()
            else:
                self.lost += 1

    def close(self) -> None:
        """Write what waits, for `LAST_LINES_S` at most, and end the thread. Idempotent."""
        with self._news:
            self._ending = True
            self._news.notify()
        self._thread.join(LAST_LINES_S)
        super().close()

    # ----------------------------------------------------------------------------------- in the thread

    def _write_lines(self) -> None:
        while True:
            with self._news:
                while not self._lines and not self._ending:
                    self._news.wait()
                if not self._lines:
                    return
                line = self._lines.popleft()
            self._write(line)
            self._tell_of_losses()

    def _write(self, line: str) -> bool:
        data = memoryview(f"{line}\n".encode(errors="backslashreplace"))
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            with self._news:
                self.lost += 1
            return False
        return True

    def _tell_of_losses(self) -> None:
        lost, now = self.lost, self._clock()
        if lost > self._told and now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            if self._write(f"{lost - self._told} log lines were lost: they could not be written, or not fast enough."):
                self._told = lost


@contextmanager
def logging_to(fd: int, level: str, process: int | None = None) -> Iterator[LogWriter]:
    """Have everything that is logged at `level` or above, and Python's warnings, written to `fd`.

    Args:
        process: Which of several processes this is, that write to one log: lines begin with it.
    """
    writer, root = LogWriter(fd), logging.getLogger()
    writer.setFormatter(logging.Formatter(_FORMAT if process is None else f"[{process}] {_FORMAT}"))
    logging.basicConfig(handlers=[writer], level=level.upper())
    logging.captureWarnings(True)
    # uvicorn tells of every connection's small troubles at "info".
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, root.level))
    for client in ("httpx", "httpcore"):  # and these of every request that is made
        logging.getLogger(client).setLevel(max(logging.WARNING, root.level))
    try:
        yield writer
    finally:
        logging.captureWarnings(False)
        root.removeHandler(writer)
        writer.close()
