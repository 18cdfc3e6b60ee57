"""File descriptors: each connection takes one, and a process has only so many."""

from __future__ import annotations

import contextlib
import sys

from msgspec import Struct

if sys.platform != "win32":
    import resource

__all__ = ["Room", "raise_limit", "room"]

MOST = 2**20
"""Where the system itself sets no limit."""
RESERVED = 256
"""For everything but connections: engines, logs, files. Of small limits, a quarter."""
BACKLOG = 2048
"""Of small limits, a quarter."""


class Room(Struct, frozen=True):
    """For connections. Those in the kernel's queue may all be accepted within one turn of the loop."""

    connections: int
    """From so many on, no more should be accepted."""
    backlog: int
    """How many may wait in the kernel's queue."""


def room() -> Room:
    """What this process has."""
    limit = MOST
    if sys.platform != "win32":
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = MOST if soft == resource.RLIM_INFINITY else soft
    backlog = min(BACKLOG, limit // 4)
    return Room(limit - min(RESERVED, limit // 4) - backlog, backlog)


def raise_limit() -> None:
    """Allow this process as many descriptors as the system would let it have: shells start with few."""
    if sys.platform != "win32":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MOST if hard == resource.RLIM_INFINITY else hard
        with contextlib.suppress(ValueError, OSError):  # a system with a lower limit of its own, as macOS
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
