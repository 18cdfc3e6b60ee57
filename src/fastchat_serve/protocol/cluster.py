"""Wire types of ``/cluster/…``: what operators and, later, other processes of the cluster read."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["WorkerCard", "WorkerList"]


class WorkerCard(Struct, frozen=True, kw_only=True):
    """One worker as its controller sees it."""

    id: str
    models: tuple[str, ...]
    adapters: tuple[str, ...] = ()
    """Those of its engine, by the names under which clients ask for them."""
    state: str
    reason: str = ""
    """Why it failed, if it did."""
    stage: str = ""
    """What its engine says of its loading, and how far it is with that: from 0 to 1, None if unknown."""
    fraction: float | None = None
    running: int
    waiting: int
    slots: int
    queue_limit: int
    kv_used_fraction: float
    context_length: int | None
    """Tokens; None until the engine is open. So are the fields that follow empty."""
    dtype: str = ""
    device: str = ""
    capabilities: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class WorkerList(Struct, frozen=True):
    workers: tuple[WorkerCard, ...]
