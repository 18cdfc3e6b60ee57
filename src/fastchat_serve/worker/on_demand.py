"""A worker that has an engine only while somebody wants it.

It is loaded for the first request, and unloaded once it had nothing to do for a while, or by its operator. Each time
it is loaded another worker is made, in this loop or in a process of its own, and this one stands for it; of one that is
unloaded nothing is kept. Requests wait in `wake` while it loads, as many as could be served then, and are started
like any others after that.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Final

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from fastchat_serve.config import Worker
from fastchat_serve.engine import (
    ChatPrompt,
    Embeddings,
    EmbedRequest,
    EngineInfo,
    GenerateRequest,
    Handle,
    Sink,
    TextPrompt,
)
from fastchat_serve.errors import Overloaded, ServeError, Unavailable
from fastchat_serve.worker.base import LoadProgress, OwnWorker, WorkerLoad, WorkerState
from fastchat_serve.worker.loading import Loading
from fastchat_serve.worker.memory import collect_garbage
from fastchat_serve.worker.watched import Watched, new_id, nobody

__all__ = ["REST_S", "OnDemandWorker"]

logger = logging.getLogger(__name__)

REST_S: Final = (1.0, 60.0)
"""After an engine could not be loaded, requests do not try again for so long: the first time, and at most."""

_LOOK_S: Final = 0.05
"""How often at most it is looked whether one that works has nothing to do any more."""


class OnDemandWorker(Watched):
    """See the module, and `base.OwnWorker`.

    Args:
        table: The table ``[[worker]]``.
        make: Makes the worker to stand for, not running yet; called in a thread. Raises `StartupError`.
        loading: What those workers tell of their progress.

    Attributes:
        on_load: Called each time an engine is loaded: its adapters are known then.
    """

    def __init__(self, table: Worker, make: Callable[[], OwnWorker], loading: Loading) -> None:
        self.id = new_id(table.names[0])
        self.names, self.speed = table.names, table.speed
        self.on_load: Callable[[], object] = nobody
        self.adapters: tuple[str, ...] = ()
        self._table, self._make, self._loading = table, make, loading
        self._inner: OwnWorker | None = None
        self._reason = ""
        self._past_restarts = self._past_errors = 0  # of those that are unloaded
        self._waiting = 0
        self._rest_s, self._rest_until = REST_S[0], 0.0
        self._used_at = time.monotonic()
        self._refusing = self._stopping = False
        self._wanted = anyio.Event()
        self._dismissed, self._stopped = anyio.Event(), anyio.Event()
        self._news = anyio.Event()
        """Of the state. Replaced whenever it is set."""
        self._load_scope: anyio.CancelScope | None = None
        if table.load == "first_request":
            self._become(WorkerState.UNLOADED)

    # ---------------------------------------------------------------------------------- life cycle

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Load and unload until `stop`.

        Started at once, or, if it is to be loaded at the start, when that is done; then what that raises is raised.
        """
        try:
            if self._table.load == "start":
                await self._live(task_status.started)
            else:
                task_status.started()
            while await self._is_wanted():
                try:
                    await self._live()
                except Exception as error:  # the boundary to foreign code
                    logger.exception("Worker %s could not be loaded.", self.id)
                    self._reason = f"It could not be loaded: {type(error).__name__}: {error}"
                if self._table.placement == "loop":
                    collect_garbage()
                if self._reason:
                    await self._rest()
        finally:
            if self.state is not WorkerState.FAILED:
                self._become(WorkerState.STOPPED)

    def stop(self) -> None:
        self._stopping = True
        self._stopped.set()
        self._wanted.set()
        if self._inner is not None and self.state is not WorkerState.LOADING:
            self._inner.stop()
        elif self._load_scope is not None:
            self._load_scope.cancel()

    def refuse(self) -> None:
        self._refusing = True
        if self._inner is not None:
            self._inner.refuse()
        if self.state in (WorkerState.READY, WorkerState.UNLOADED):
            self._become(WorkerState.DRAINING)
        self._tell()

    async def drain(self) -> None:
        self.refuse()
        if self._inner is not None:
            await self._inner.drain()

    def expel(self, error: ServeError) -> None:
        if self._inner is not None:
            self._inner.expel(error)

    async def unload(self) -> None:
        """Close the engine once accepted work is done, and wait for that; the next request loads it again."""
        if self.state is WorkerState.LOADING and self._load_scope is not None:
            self._load_scope.cancel()
        self._dismissed.set()
        while self._inner is not None or self.state is WorkerState.LOADING:
            await self._news.wait()

    async def wake(self) -> None:
        self._used_at = time.monotonic()
        if self.state is WorkerState.READY:
            return
        if not self.wakes:
            raise self._unavailable()
        if self._waiting >= self._table.concurrency + self._table.queue:
            raise Overloaded(
                f"Model {self.names[0]!r} is being loaded, and {self._waiting} requests wait for it already. "
                "Try again later.",
                retry_after_s=self.back_in_s,
            )
        self._wanted.set()
        self._waiting += 1
        self.on_change()
        try:
            with anyio.move_on_after(self._table.timeouts.queue_s or math.inf):
                await self._until_ready()
                return
            raise Unavailable(
                f"Model {self.names[0]!r} is still being loaded. Try again later.",
                code="loading",
                retry_after_s=self.back_in_s,
            )
        finally:
            self._waiting -= 1
            self._used_at = time.monotonic()
            self.on_change()

    async def _until_ready(self) -> None:
        while self.state is not WorkerState.READY:
            if not self.wakes:
                raise self._unavailable()
            await self._news.wait()

    async def _live(self, opened: Callable[[], object] = nobody) -> None:
        """One engine's life: from loading it until it is unloaded, or breaks. Raises what loading it raises."""
        self._wanted, self._dismissed = anyio.Event(), anyio.Event()
        if self._stopping:
            return
        self._reason = ""
        self._loading.begin()
        self._become(WorkerState.LOADING)
        failure: Exception | None = None
        scope = self._load_scope = anyio.CancelScope()
        try:
            with scope:
                inner = await anyio.to_thread.run_sync(self._make)
                self._stand_for(inner)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._end_in_time, inner)
                    try:
                        await inner.run(task_status=_Then(lambda: self._opened(opened)))
                    except Exception as error:  # the boundary to foreign code; a group would hide what it is
                        failure = error
                    tasks.cancel_scope.cancel()
        finally:
            self._loading.end(done=False)
            if scope.cancelled_caught:
                self._reason = "It was not to be loaded any more."
            self._let_go()
            self._become(WorkerState.FAILED if failure is not None or self._reason else WorkerState.UNLOADED)
        if failure is not None:
            raise failure

    def _stand_for(self, inner: OwnWorker) -> None:
        inner.id, self._inner = self.id, inner
        inner.on_change = self._follow
        if self._refusing:
            inner.refuse()

    def _let_go(self) -> None:
        if (inner := self._inner) is not None:
            inner.on_change = nobody
            if inner.state is WorkerState.FAILED:
                self._reason = inner.reason
            self._past_restarts += inner.restarts
            self._past_errors += inner.protocol_errors
        self._inner = self._load_scope = None

    def _opened(self, opened: Callable[[], object]) -> None:
        self._loading.end(done=True)
        self._wanted = anyio.Event()
        self._rest_s = REST_S[0]
        self._follow()
        self.on_load()
        opened()

    def _follow(self) -> None:
        """The worker that this one stands for has changed."""
        inner = self._inner
        if inner is None:
            return
        self._used_at = time.monotonic()
        self.adapters = inner.adapters
        if inner.state not in (self._state, WorkerState.STOPPED):
            self._become(inner.state)
        else:
            self.on_change()

    async def _end_in_time(self, inner: OwnWorker) -> None:
        """Have its engine closed once it was idle for long enough, or is not wanted any more."""
        idle_s = self._table.idle_unload_s or math.inf
        while not self._dismissed.is_set():
            busy = inner.state is not WorkerState.READY or inner.queue_length or self._waiting
            left_s = max(idle_s, _LOOK_S) if busy else self._used_at + idle_s - time.monotonic()
            if left_s <= 0:
                logger.info("Worker %s is unloaded: it had nothing to do for %g s.", self.id, idle_s)
                break
            with anyio.move_on_after(left_s):
                await self._dismissed.wait()
        await inner.drain()
        inner.stop()

    async def _rest(self) -> None:
        """Be out of service for a while: what made it fail will make it fail again."""
        self._rest_until = time.monotonic() + self._rest_s
        self._become(WorkerState.FAILED)
        with anyio.move_on_after(self._rest_s):
            await self._stopped.wait()
        self._rest_s = min(2 * self._rest_s, REST_S[1])
        self._wanted = anyio.Event()
        self._become(WorkerState.UNLOADED)

    async def _is_wanted(self) -> bool:
        if not self._stopping:
            await self._wanted.wait()
        return not self._stopping

    def _become(self, state: WorkerState) -> None:
        if self._refusing and state is WorkerState.UNLOADED:
            state = WorkerState.DRAINING
        self.state = state
        self._tell()

    def _tell(self) -> None:
        """Those that wait for another state."""
        self._news.set()
        self._news = anyio.Event()

    # ------------------------------------------------------------------------------------- serving

    @property
    def reason(self) -> str:
        return self._reason if self._inner is None else self._inner.reason

    @property
    def info(self) -> EngineInfo:
        if self._inner is None:
            raise RuntimeError("the worker is not loaded")
        return self._inner.info

    @property
    def wakes(self) -> bool:
        """Also while it is unloaded: the request after it loads it again."""
        return not (self._refusing or self._stopping) and self.state in (
            WorkerState.UNLOADED,
            WorkerState.LOADING,
            WorkerState.DRAINING,
        )

    @property
    def progress(self) -> LoadProgress:
        return self._loading.progress

    @property
    def queue_length(self) -> int:
        return self._waiting + (0 if self._inner is None else self._inner.queue_length)

    @property
    def full(self) -> bool:
        if self._inner is not None and self.state is WorkerState.READY:
            return self._inner.full
        return self._waiting >= self._table.concurrency + self._table.queue

    @property
    def restarts(self) -> int:
        return self._past_restarts + (0 if self._inner is None else self._inner.restarts)

    @property
    def protocol_errors(self) -> int:
        return self._past_errors + (0 if self._inner is None else self._inner.protocol_errors)

    @property
    def tool_parser(self) -> str:
        return "" if self._inner is None else self._inner.tool_parser

    @property
    def back_in_s(self) -> float:
        match self.state:
            case WorkerState.LOADING:
                return self._loading.left_s
            case WorkerState.UNLOADED:
                return self._loading.took_s
            case WorkerState.FAILED if self._inner is None:
                return max(1.0, self._rest_until - time.monotonic())
            case _:
                return 1.0 if self._inner is None else self._inner.back_in_s

    def load(self) -> WorkerLoad:
        if self._inner is None:
            return WorkerLoad(0, self._waiting, self._table.concurrency, self._table.queue)
        load = self._inner.load()
        return WorkerLoad(load.running, load.waiting + self._waiting, load.slots, load.queue_limit, load.engine)

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        return self._loaded().start(request, sink)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        return await self._loaded().embed(request)

    async def tokenize(self, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]:
        return await self._loaded().tokenize(prompt)

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        return await self._loaded().detokenize(token_ids)

    def _loaded(self) -> OwnWorker:
        if self._inner is None:
            raise self._unavailable()
        self._used_at = time.monotonic()
        return self._inner

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            f"Model {self.names[0]!r} cannot be served now: its worker is {self.state}.", retry_after_s=self.back_in_s
        )


class _Then(TaskStatus[None]):
    """Calls `then` when the task has started."""

    def __init__(self, then: Callable[[], object]) -> None:
        self._then = then

    def started(self, value: None = None) -> None:
        self._then()
