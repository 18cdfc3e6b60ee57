"""A listed worker, and what was last seen of it: what the indexes over many workers are made of.

A worker says *that* something changed (`Worker.on_change`), and is looked at before the next decision. So a burst of
changes costs one look, and nothing happens in the middle of a worker's own doings.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from msgspec import Struct

from fastchat_serve.capabilities import Capability
from fastchat_serve.engine import EngineInfo
from fastchat_serve.worker.base import Worker, WorkerState
from fastchat_serve.worker.watched import nobody

__all__ = ["Kind", "Member", "Seen"]


class Kind(Struct, frozen=True, gc=False):
    """What tells workers of one model apart: who is able to take a request, and to go on with an answer."""

    capabilities: frozenset[Capability]
    fingerprint: str
    resumes: bool
    """Another of the same fingerprint can go on with its answers."""

    @classmethod
    def of(cls, info: EngineInfo) -> Kind:
        resumes = bool(info.fingerprint) and Capability.TOKEN_IDS in info.capabilities
        return cls(info.capabilities, info.fingerprint, resumes)

    def fits(self, needed: frozenset[Capability], fingerprint: str) -> bool:
        return needed <= self.capabilities and fingerprint in ("", self.fingerprint)


class Seen(Struct, frozen=True, gc=False):
    """A worker at one moment."""

    kind: Kind | None = None
    """None: it takes no requests."""
    full: bool = False
    speed: float = 0.0
    queue_length: int = 0
    work: int = 0


class Member:
    """One listed worker. Hashed by identity.

    Args:
        position: Its place in the order of listing.

    Attributes:
        names: Of the models that it is listed for.
        changed: Called when it has to be looked at.
    """

    __slots__ = ("_info", "_kind", "changed", "id", "names", "position", "seen", "work", "worker")

    def __init__(self, worker: Worker, position: int) -> None:
        self.worker, self.id, self.position = worker, worker.id, position
        self.names: tuple[str, ...] = ()
        self.changed: Callable[[], object] = nobody
        self.seen = Seen()
        self.work = 0
        """About how many tokens its answers under way have to read and to write, as far as they came from here."""
        self._info: object = None
        self._kind: Kind | None = None

    def charge(self, tokens: int) -> None:
        """It has so many tokens more to read and to write; or, below zero, fewer."""
        self.work += tokens
        self.changed()

    def look(self) -> Seen:
        """As it is now."""
        worker = self.worker
        speed = worker.speed
        if not 0 < speed < math.inf:
            speed = 0.0
        if worker.state is not WorkerState.READY:
            return Seen(speed=speed, work=self.work)
        info = worker.info
        if info is not self._info:
            self._info, self._kind = info, Kind.of(info)
        return Seen(self._kind, worker.full, speed, worker.queue_length, self.work)
