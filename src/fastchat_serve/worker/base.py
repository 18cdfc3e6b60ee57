"""What every worker is, wherever its engine runs.

A worker is one open engine with slots. `local.py` runs it in this event loop. The interface drives
sinks: `Worker.start` returns at once and everything else, errors included, arrives at the sink.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from msgspec import Struct

from fastchat_serve.engine import (
    ChatPrompt,
    Embeddings,
    EmbedRequest,
    EngineInfo,
    EngineLoad,
    GenerateRequest,
    Handle,
    Sink,
    TextPrompt,
)

__all__ = ["Worker", "WorkerLoad", "WorkerState"]


class WorkerState(StrEnum):
    """The life of a worker, in order. `FAILED` can follow any; `LOST` can, and what it was before can follow it."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"
    LOST = "lost"
    """Its process, elsewhere, is not to be heard."""


class WorkerLoad(Struct, frozen=True):
    """A worker's slots and queue right now, and what its engine says of itself."""

    running: int
    waiting: int
    slots: int
    queue_limit: int
    engine: EngineLoad = EngineLoad()

    @property
    def queue_length(self) -> int:
        """Requests accepted and not finished: what FastChat calls by this name."""
        return self.running + self.waiting


class Worker(Protocol):
    """One engine behind slots."""

    id: str
    names: tuple[str, ...]
    """What clients may call the model."""
    adapters: tuple[str, ...]
    """And its engine's adapters; none before it was ready once."""
    speed: float
    """Relative to other workers of the same model; policies weigh by it."""
    on_change: Callable[[], object]
    """Called whenever `state`, `info`, `queue_length`, `full` or `speed` may be others than before: by whoever has
    listed the worker it is set. It must not raise, and does next to nothing."""

    @property
    def state(self) -> WorkerState: ...
    @property
    def reason(self) -> str:
        """Why it failed; empty otherwise."""
        ...

    @property
    def info(self) -> EngineInfo:
        """Valid from `READY` on."""
        ...

    @property
    def queue_length(self) -> int:
        """Requests accepted and not finished."""
        ...

    @property
    def full(self) -> bool:
        """All slots are taken, and all places in the queue."""
        ...

    @property
    def back_in_s(self) -> float:
        """Seconds until it may take requests, as far as anybody can tell; for one that takes none now."""
        ...

    @property
    def restarts(self) -> int:
        """How often its engine broke and was opened anew."""
        ...

    @property
    def protocol_errors(self) -> int:
        """How often its engine broke the contract."""
        ...

    @property
    def tool_parser(self) -> str:
        """Name of the parser for the model's tool calls; empty if it has none."""
        ...

    def load(self) -> WorkerLoad: ...

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        """Accept an answer, or raise `Overloaded` or `Unavailable` without having touched `sink`."""
        ...

    async def embed(self, request: EmbedRequest) -> Embeddings: ...
    async def tokenize(self, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]: ...
    async def detokenize(self, token_ids: tuple[int, ...]) -> str: ...
