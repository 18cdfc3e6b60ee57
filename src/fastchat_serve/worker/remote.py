"""A worker at the other end of a link: the interface of a local one, and no engine here.

What the host says of the worker is believed as long as it is heard; a worker whose host has gone silent is out of
rotation at once. The link may be another after a while: whoever opens links calls `attach`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio

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
from fastchat_serve.errors import EngineError, Overloaded, ServeError, Unavailable
from fastchat_serve.protocol.frames import LinkBroken
from fastchat_serve.protocol.link import Detokenize, Embed, Load, Obey, Order, Statement, Tokenize, Wake
from fastchat_serve.worker.base import LoadProgress, Worker, WorkerLoad, WorkerState
from fastchat_serve.worker.caller import Caller
from fastchat_serve.worker.watched import Watched

__all__ = ["LOST", "RemoteWorker"]

LOST = "Nothing is heard of its process."
"""The reason of a worker whose host is silent."""

_WAKING = (WorkerState.UNLOADED, WorkerState.LOADING, WorkerState.DRAINING)


class RemoteWorker(Watched):
    """See `base.Worker`, and `caller.Called`.

    Args:
        id_: What the host calls the worker.
        names: What clients call the model.
        slots, queue_limit: Until the host says how many it has.
    """

    def __init__(
        self, id_: str, names: tuple[str, ...], *, speed: float = 1.0, slots: int = 1, queue_limit: int = 0
    ) -> None:
        self.id, self.names, self.speed = id_, names, speed
        self.adapters: tuple[str, ...] = ()
        self._before = WorkerState.LOADING
        self.reason = ""
        self.restarts = 0
        self.protocol_errors = 0
        self.tool_parser = ""
        self._back_in_s = 1.0
        self._info: EngineInfo | None = None
        self._slots, self._queue_limit = slots, queue_limit
        self._others = 0
        self._under_way = 0
        self._engine_load = EngineLoad()
        self._said_wakes, self._said_progress = False, LoadProgress()
        self._caller: Caller | None = None
        self._idle = anyio.Event()

    def attach(self, caller: Caller) -> None:
        """Call the worker through `caller` from now on."""
        self._caller = caller

    # ------------------------------------------------------------------------------- the caller's side

    def stated(self, said: Statement) -> None:
        try:
            self.state = WorkerState(said.state)
        except ValueError:
            raise LinkBroken(f"no worker can be {said.state!r}") from None
        self.reason, self.tool_parser, self.adapters = said.reason, said.tool_parser, said.adapters
        self._info = said.info or self._info
        self._slots, self._queue_limit = said.slots, said.queue_limit
        self.restarts, self.protocol_errors = said.restarts, said.protocol_errors
        self._back_in_s = max(said.back_in_s, 1.0)
        self._said_wakes, self._said_progress = said.wakes, LoadProgress(said.stage, said.fraction)
        self.on_change()

    def loaded(self, said: Load) -> None:
        self._others = max(0, said.running + said.waiting - said.of_caller)
        self._engine_load = said.engine
        self.on_change()

    def lost(self) -> None:
        self.set_aside(LOST)

    def set_aside(self, reason: str) -> None:
        """Use it no more until it is `found`."""
        if self.state in (WorkerState.READY, WorkerState.DRAINING):
            self._before = self.state
            self.state, self.reason = WorkerState.LOST, reason

    def found(self) -> None:
        if self.state is WorkerState.LOST:
            self.state, self.reason = self._before, ""

    def detached(self) -> None:
        self._caller = None
        if self.state is not WorkerState.FAILED and not self._is_ending:
            self.state, self.reason = WorkerState.LOST, LOST
        self._others, self._engine_load = 0, EngineLoad()
        self.on_change()

    def begun(self) -> None:
        self._under_way += 1
        self.on_change()

    def over(self) -> None:
        self._under_way -= 1
        self.on_change()
        if not self._under_way:
            self._idle.set()

    # ------------------------------------------------------------------------------------- serving

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise RuntimeError("the worker is not ready")
        return self._info

    @property
    def back_in_s(self) -> float:
        return self._back_in_s

    @property
    def wakes(self) -> bool:
        return self._said_wakes and self.state in _WAKING and self._is_linked

    @property
    def progress(self) -> LoadProgress:
        return self._said_progress

    @property
    def queue_length(self) -> int:
        """Ours are counted here, to the moment; those of others as the host said last."""
        return self._others + self._under_way

    @property
    def full(self) -> bool:
        return self.queue_length >= self._slots + self._queue_limit

    def load(self) -> WorkerLoad:
        all_ = self.queue_length
        running = min(all_, self._slots)
        return WorkerLoad(running, all_ - running, self._slots, self._queue_limit, self._engine_load)

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        """As `Worker.start`; that the queue is full is told to `sink`, as the host is asked first."""
        return self._ready().generate(self, request, sink)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        caller = self._ready()
        self.begun()  # for it takes a slot
        try:
            return await caller.call(self, lambda number: Embed(number, self.id, request), Embeddings)
        finally:
            self.over()

    async def tokenize(self, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]:
        return await self._ready().call(self, lambda number: Tokenize(number, self.id, prompt), tuple)

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        return await self._ready().call(self, lambda number: Detokenize(number, self.id, token_ids), str)

    async def wake(self) -> None:
        if self.state is WorkerState.READY:
            return
        caller = self._caller
        if caller is None or not self.wakes:
            raise self._unavailable()
        if self.full:
            raise Overloaded(
                f"Model {self.names[0]!r} is being loaded, and {self.queue_length} requests wait for it already. "
                "Try again later.",
                retry_after_s=self.back_in_s,
            )
        self.begun()  # for it takes a place in the queue
        try:
            await caller.call(self, lambda number: Wake(number, self.id), bool)
        except EngineError:  # nothing was begun that could be lost with its process
            raise self._unavailable() from None
        finally:
            self.over()

    async def obey(self, order: Order, name: str = "", table: dict[str, Any] | None = None) -> None:
        """Have this done to it where it is, and return when it is. Raises what is raised there."""
        if self._caller is None or not self._is_linked:
            raise self._unavailable()
        await self._caller.call(None, lambda number: Obey(number, self.id, order, name, table), bool)

    def beside(self) -> Callable[[Worker], bool]:
        """Says which workers are called through the link that this one has now, and so are in the same process."""
        caller = self._caller
        return lambda worker: caller is not None and isinstance(worker, RemoteWorker) and worker._caller is caller

    def expel(self, error: ServeError) -> None:
        """End everything of ours that is under way with `error`."""
        if self._caller is not None:
            self._caller.expel(self, error)

    async def wait_idle(self) -> None:
        """Return when nothing of ours has a slot, or waits for one."""
        while self._under_way:
            if self._idle.is_set():
                self._idle = anyio.Event()
            await self._idle.wait()

    def _ready(self) -> Caller:
        if self.state is not WorkerState.READY or self._caller is None or not self._is_linked:
            raise self._unavailable()
        return self._caller

    @property
    def _is_ending(self) -> bool:
        """Its link is about to close, and nothing is lost by that."""
        return False

    @property
    def _is_linked(self) -> bool:
        return self._caller is not None and self._caller.link.open

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            f"Model {self.names[0]!r} cannot be served now: its worker is {self.state}.", retry_after_s=self.back_in_s
        )
