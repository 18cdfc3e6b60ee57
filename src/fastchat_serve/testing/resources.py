"""What a process holds, to see whether unloading an engine gives it back."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path

import anyio
import psutil
from msgspec import Struct

__all__ = ["Resources", "children", "settled"]

_POOLED = ("AnyIO worker thread", "asyncio_", "ThreadPoolExecutor")
"""Threads of pools that belong to the process, and go idle rather than away."""

_TRACKERS = ("resource_tracker", "forkserver")
"""Children that Python's multiprocessing starts once and keeps."""


class Resources(Struct, frozen=True):
    """What is held at one moment."""

    threads: tuple[str, ...]
    """Names, but for those of pools."""
    descriptors: int
    """Open files and sockets; 0 where the system does not tell."""
    children: int
    tasks: int
    memory_mb: int
    """Resident."""

    @classmethod
    def now(cls) -> Resources:
        gc.collect()
        names = sorted(thread.name for thread in threading.enumerate() if not thread.name.startswith(_POOLED))
        return cls(
            tuple(names),
            _descriptors(),
            len(children()),
            len(asyncio.all_tasks()),
            psutil.Process().memory_info().rss >> 20,
        )

    def grown_since(self, before: Resources) -> dict[str, tuple[int, int]]:
        """What there is more of, memory apart: (before, now) by its name."""
        counts = {
            "threads": (len(before.threads), len(self.threads)),
            "descriptors": (before.descriptors, self.descriptors),
            "children": (before.children, self.children),
            "tasks": (before.tasks, self.tasks),
        }
        return {what: pair for what, pair in counts.items() if pair[1] > pair[0]}


async def settled(before: Resources | None, patience_s: float) -> Resources:
    """What is held once it is no more than `before`, or after a while: threads and children take a moment to end."""
    now = Resources.now()
    with anyio.move_on_after(patience_s):
        while before is not None and now.grown_since(before):
            await anyio.sleep(0.1)
            now = Resources.now()
    return now


def children() -> list[psutil.Process]:
    """The processes that this one has started, and theirs, but for Python's own helpers."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            command, status = " ".join(child.cmdline()), child.status()
        except psutil.Error:  # it has ended meanwhile
            continue
        if status != psutil.STATUS_ZOMBIE and not any(tracker in command for tracker in _TRACKERS):
            found.append(child)
    return found


def _descriptors() -> int:
    for folder in (Path("/proc/self/fd"), Path("/dev/fd")):
        if folder.is_dir():
            return len(os.listdir(folder))
    return 0
