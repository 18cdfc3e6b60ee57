"""Wire types of ``/cluster/…``: what operators read and ask for."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

__all__ = [
    "Alias",
    "Aliased",
    "Draining",
    "OperationReport",
    "Target",
    "WorkerCard",
    "WorkerList",
    "WorkerReport",
]


class WorkerCard(Struct, frozen=True, kw_only=True):
    """One worker as its controller sees it."""

    id: str
    models: tuple[str, ...]
    adapters: tuple[str, ...] = ()
    """Those of its engine, by the names under which clients ask for them."""
    state: str
    reason: str = ""
    """Why it failed, if it did."""
    node: str = ""
    """The process that it is in, as logs call it, and where that is; empty if it is the one that was asked."""
    address: str = ""
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


class WorkerReport(Struct, frozen=True, kw_only=True):
    """What an operation has made of one worker so far."""

    id: str
    models: tuple[str, ...]
    state: str
    """As in `WorkerCard`, or ``gone``."""
    stage: str = ""
    fraction: float | None = None
    running: int
    waiting: int


class OperationReport(Struct, frozen=True):
    """Data of the events that tell how far an operation is."""

    workers: tuple[WorkerReport, ...]
    done: bool = False
    """The last event; if it failed, that is an error instead."""


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of ``POST /cluster/models/unload`` and ``…/reload``."""

    name: str
    """Of a model, which means all its workers, or the id of a worker."""


class Alias(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of ``POST /cluster/aliases``."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    model: str
    """What is meant by it from now on."""


class Aliased(Struct, frozen=True):
    name: str
    model: str
    workers: tuple[str, ...]
    """Ids of those that are called so."""


class Draining(Struct, frozen=True):
    """Reply to ``POST /cluster/drain``."""

    drain_s: float
    """After so long what is not done is cut off."""
