"""What every worker is, wherever its engine runs.

A worker is one open engine with slots. `local.py` runs it in this event loop. The interface drives
sinks: `Worker.start` returns at once and everything else, errors included, arrives at the sink.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus
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
from fastchat_serve.errors import ServeError

__all__ = ["LoadProgress", "OwnWorker", "Worker", "WorkerLoad", "WorkerState"]


class WorkerState(StrEnum):
    """The life of a worker, in order. `FAILED` can follow any; `LOST` can, and what it was before can follow it.

    One that is loaded on demand begins as `UNLOADED`, and is that again after `DRAINING`.
    """

    UNLOADED = "unloaded"
    """Its engine will be loaded once somebody wants it."""
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


class LoadProgress(Struct, frozen=True):
    """What an engine tells of its loading: see `hookspecs.Progress`."""

    stage: str = ""
    fraction: float | None = None


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
    def node(self) -> str:
        """The id of the process that it is in; empty if it is this one."""
        ...

    @property
    def address(self) -> str:
        """Where that process is: a URL, or its host if it is dialled by nobody; empty if it is this one."""
        ...

    @property
    def info(self) -> EngineInfo:
        """Valid from `READY` on."""
        ...

    @property
    def wakes(self) -> bool:
        """It takes no requests now, and will once `wake` returns."""
        ...

    @property
    def progress(self) -> LoadProgress:
        """While it loads."""
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

    async def wake(self) -> None:
        """Return once it takes requests, for which its engine may have to be loaded: once, whoever else waits.

        Raises:
            Overloaded: As many wait for that already as could be served then.
            Unavailable: It was not loaded in the time that a request may wait, or cannot be.
        """
        ...

    async def embed(self, request: EmbedRequest) -> Embeddings: ...
    async def tokenize(self, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]: ...
    async def detokenize(self, token_ids: tuple[int, ...]) -> str: ...


class OwnWorker(Worker, Protocol):
    """A worker of this process, whose life is in our hands. ``await tasks.start(worker.run)``; `stop` ends `run`."""

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Keep it until `stop`. Started once it can serve. Raises whatever loading its engine at the start raises."""

    def stop(self) -> None:
        """End `run`. What is still under way is told so: `drain` before."""

    def refuse(self) -> None:
        """Take no new work."""

    async def drain(self) -> None:
        """Take no new work, and return when all accepted work is done. The caller bounds the wait."""

    def expel(self, error: ServeError) -> None:
        """End everything under way with `error`."""
