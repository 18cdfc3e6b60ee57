"""File descriptors: each connection takes one, and a process has only so many."""

from __future__ import annotations

import sys

if sys.platform != "win32":
    import resource

__all__ = ["most_connections", "raise_limit"]

MOST = 2**20
"""Where the system itself sets no limit."""
RESERVED = 256
"""For everything but connections: engines, logs, files. Of small limits, a quarter."""


def raise_limit() -> None:
    """Allow this process as many descriptors as the system would let it have: shells start with few."""
    if sys.platform != "win32":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MOST if hard == resource.RLIM_INFINITY else hard
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (ValueError, OSError):
            pass  # a system that knows a lower limit of its own, as macOS; then the limit is what it was


def most_connections() -> int:
    """How many connections there may be at a time."""
    if sys.platform == "win32":
        return MOST
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MOST if soft == resource.RLIM_INFINITY else soft
    return limit - min(RESERVED, limit // 4)
