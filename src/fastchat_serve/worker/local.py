"""A worker whose engine lives in this process and is driven by this event loop.

It adds to an engine what every engine needs: slots and a bounded queue (`slots.py`), time limits and
the proof of the contract (`job.py`, `embed_job.py`), a life cycle, and drain.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus

from fastchat_serve.config import Timeouts
from fastchat_serve.engine import (
    ChatPrompt,
    Embeddings,
    EmbedRequest,
    Embeds,
    Engine,
    EngineInfo,
    EngineLoad,
    GenerateRequest,
    Handle,
    Sink,
    TextPrompt,
    Tokenizes,
    missing_methods,
)
from fastchat_serve.errors import EngineError, Overloaded, ServeError, StartupError, Unavailable, Unsupported
from fastchat_serve.push import Pusher
from fastchat_serve.worker.base import LoadProgress, WorkerLoad, WorkerState
from fastchat_serve.worker.embed_job import EmbedJob
from fastchat_serve.worker.job import Job
from fastchat_serve.worker.loading import Loading
from fastchat_serve.worker.restarts import Restarts
from fastchat_serve.worker.slots import Slots
from fastchat_serve.worker.watched import Watched, new_id

__all__ = ["ABORT_GRACE_S", "LocalWorker"]

logger = logging.getLogger(__name__)

ABORT_GRACE_S = 5.0
"""An engine that has not let go of an aborted request after this long is taken for broken."""

CHECK_INTERVAL_S = 0.1
"""How often time limits are checked, and so how precisely they are kept."""

IDLE_CHECKS = 3
"""Only every so many times while there is nothing to check but the engine's health: an idle machine is to sleep."""

CLOSE_S = 10.0
"""A broken engine that has not closed after this long is left as it is: another beside it might find no memory."""

NO_HOPE_S = 60.0
"""When to ask again for a model whose worker failed for good: an operator has to see to it first."""


class LocalWorker(Watched):
    """See `base.Worker`. ``await tasks.start(worker.run)`` opens the engine; `stop` ends `run`.

    Args:
        engine: Not yet open.
        names: What clients call the model.
        concurrency: Slots: requests that generate at once.
        queue: Requests that wait at most.
        timeouts: Limits for every request; a request may ask for less.
        tool_parser: Overrides what the engine says of its model.
        abort_grace_s: How long an engine may take to let go of an aborted request.
        remake: Makes a fresh engine when this one breaks; None: the worker stays failed then.
        loading: Is told by the engine how far it is.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        names: tuple[str, ...],
        concurrency: int = 16,
        queue: int = 64,
        speed: float = 1.0,
        timeouts: Timeouts | None = None,
        tool_parser: str | None = None,
        abort_grace_s: float = ABORT_GRACE_S,
        remake: Callable[[], Engine] | None = None,
        loading: Loading | None = None,
    ) -> None:
        self.id = new_id(names[0])
        self.names, self.speed = names, speed
        self.adapters: tuple[str, ...] = ()
        self.reason = ""
        """Why the worker failed, for the operator."""
        self.protocol_errors = 0
        self._engine: Engine | None = engine
        self._remake = remake
        self._timeouts = timeouts or Timeouts()
        self._tool_parser = tool_parser
        self._abort_grace_s = abort_grace_s
        self._slots = Slots(concurrency, queue, time.monotonic, changed=lambda: self.on_change())
        self._jobs: set[Job | EmbedJob] = set()
        self._pusher: Pusher | None = None
        self._restarts = Restarts(time.monotonic)
        self._refusing = self._stopping = False
        self._over = anyio.Event()  # of this engine's life
        self._life: anyio.CancelScope | None = None
        self._loading = loading or Loading(lambda stage, fraction=None: None)

    # ---------------------------------------------------------------------------------- life cycle

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Keep an engine open until `stop`: a fresh one if it breaks, as `Restarts` allows. Started once it can serve.

        Raises whatever the first engine raises while it loads.
        """
        try:
            await self._live(task_status)
            while self._may_restart():
                await self._restart()
        finally:
            if self.state is not WorkerState.FAILED:
                self.state = WorkerState.STOPPED
            self._engine = None  # whoever still knows this worker does not hold its weights by it

    def stop(self) -> None:
        """End `run`. What is still under way is told so and aborted: `drain` before."""
        self._stopping = True
        self._over.set()

    async def drain(self) -> None:
        """Take no new work, and return when all accepted work is done. The caller bounds the wait."""
        self.refuse()
        await self._slots.wait_idle()

    def expel(self, error: ServeError) -> None:
        """End everything under way with `error`."""
        # Those that wait come first: a slot that is freed meanwhile must not start one of them.
        for job in sorted(self._jobs, key=lambda job: not job.waiting):
            job.give_up(error)

    def fail(self, reason: str) -> None:
        """Take this worker out of service, and close its engine."""
        logger.error("Worker %s failed: %s", self.id, reason)
        self.state, self.reason = WorkerState.FAILED, reason
        self.expel(EngineError("The engine that worked on this request failed."))
        for job in list(self._jobs):
            job.forget()
        if self._life is not None:
            self._life.deadline = anyio.current_time() + CLOSE_S
        self._over.set()

    def refuse(self) -> None:
        """Take no new work from now on."""
        self._refusing = True
        if self.state is WorkerState.READY:
            self.state = WorkerState.DRAINING

    async def _live(self, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """One engine's life: from loading until `stop`, or until it breaks."""
        loaded = False
        self._over = anyio.Event()
        if self._stopping:
            return
        self._loading.begin()
        try:
            with anyio.CancelScope() as life:
                self._life = life
                # Streams end before the engine closes; one that would not, because the engine did.
                async with _cancelled_at_the_end() as tasks, self._opened() as engine:
                    loaded = True
                    self._loading.end(done=True)
                    self._pusher = Pusher(engine, tasks)
                    self.adapters = engine.info.adapters
                    if self.state is WorkerState.LOADING:
                        self.state = WorkerState.DRAINING if self._refusing else WorkerState.READY
                        self.reason = ""
                    task_status.started()
                    try:
                        await self._keep_limits(engine)
                    finally:
                        await self._break_off()
        except Exception:  # the boundary to foreign code
            self.fail("The engine broke off." if loaded else "The engine could not be opened.")
            if not loaded:
                self._loading.end(done=False)
                raise
            logger.exception("Worker %s: this is how its engine broke off.", self.id)
        finally:
            self._pusher = None
            for job in list(self._jobs):
                job.forget()

    def _may_restart(self) -> bool:
        if self.state is not WorkerState.FAILED or self._remake is None or self._refusing or self._stopping:
            return False
        if self._life is not None and self._life.cancelled_caught:
            why = f"Its engine did not close within {CLOSE_S:g} s."
        elif self._restarts.allow():
            return True
        else:
            why = "Its engine was opened anew too often."
        logger.error("Worker %s stays out of service. %s", self.id, why)
        return False

    async def _restart(self) -> None:
        assert self._remake is not None
        logger.warning("Worker %s: opening its engine anew.", self.id)
        self.state = WorkerState.LOADING
        try:
            self._engine = self._remake()
            await self._live()
        except Exception:  # the boundary to foreign code
            logger.exception("Worker %s: its engine could not be opened anew.", self.id)
            if self.state is WorkerState.LOADING:
                self.fail("The engine could not be made anew.")

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Engine]:
        assert self._engine is not None
        async with self._engine as engine:
            if not isinstance(engine.info, EngineInfo):
                raise TypeError(f"the engine's info is of type {type(engine.info).__name__}, not EngineInfo")
            if missing := missing_methods(engine):
                raise TypeError(f"the engine declares what it does not have: {', '.join(missing)}")
            if clash := set(self.names) & set(engine.info.adapters):
                raise StartupError(f"{min(clash)!r} is the name of the model and of one of its adapters")
            yield engine

    async def _break_off(self) -> None:
        if self.state is WorkerState.READY:
            self.state = WorkerState.DRAINING
        self.expel(Unavailable("This worker is shutting down.", retry_after_s=1.0))
        with anyio.move_on_after(self._abort_grace_s, shield=True):
            await self._slots.wait_idle()

    async def _keep_limits(self, engine: Engine) -> None:
        """Return when the engine's life is over; meanwhile see that it keeps the limits and is well."""
        while not self._over.is_set():
            with anyio.move_on_after(CHECK_INTERVAL_S * (1 if self._jobs else IDLE_CHECKS)):
                await self._over.wait()
            if (error := engine.fatal_error) is not None:
                return self.fail(f"The engine broke: {type(error).__name__}: {error}")
            now = time.monotonic()
            obeyed = [job.check(now, self._abort_grace_s) for job in list(self._jobs)]
            if not all(obeyed):
                return self.fail(f"The engine kept an aborted request for more than {self._abort_grace_s:g} s.")

    # ------------------------------------------------------------------------------------- serving

    @property
    def info(self) -> EngineInfo:
        assert self._engine is not None, "the worker has ended"
        return self._engine.info

    @property
    def progress(self) -> LoadProgress:
        return self._loading.progress

    @property
    def queue_length(self) -> int:
        return self._slots.running + self._slots.waiting

    @property
    def tool_parser(self) -> str:
        return self.info.tool_parser if self._tool_parser is None else self._tool_parser

    @property
    def full(self) -> bool:
        return self._slots.full

    @property
    def restarts(self) -> int:
        return self._restarts.count

    @property
    def back_in_s(self) -> float:
        if self.state is WorkerState.FAILED:
            return NO_HOPE_S
        if self.state is WorkerState.LOADING:
            return self._loading.left_s
        return 1.0

    def load(self) -> WorkerLoad:
        slots = self._slots
        return WorkerLoad(slots.running, slots.waiting, slots.count, slots.queue_limit, self._engine_load())

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        job = Job(
            request,
            sink,
            start=self._ready().start,
            slots=self._slots,
            timeouts=self._timeouts,
            clock=time.monotonic,
            let_go=self._jobs.discard,
            breach=self._count_breach,
        )
        self._jobs.add(job)
        try:
            job.accept()
        except Overloaded:
            self._jobs.discard(job)
            raise
        return job

    async def embed(self, request: EmbedRequest) -> Embeddings:
        self._ready()
        if not isinstance(self._engine, Embeds):
            raise Unsupported("This model makes no embeddings.", param="model")
        job = EmbedJob(
            request, embed=self._engine.embed, slots=self._slots, timeouts=self._timeouts, clock=time.monotonic
        )
        self._jobs.add(job)
        try:
            return await job.run()
        finally:
            self._jobs.discard(job)

    async def tokenize(self, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]:
        return await self._tokenizer().tokenize(prompt)

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        return await self._tokenizer().detokenize(token_ids)

    def _tokenizer(self) -> Tokenizes:
        self._ready()
        if not isinstance(self._engine, Tokenizes):
            raise Unsupported("This model's tokenizer is not to be had.", param="model")
        return self._engine

    def _engine_load(self) -> EngineLoad:
        if self._pusher is None or self._engine is None:
            return EngineLoad()
        try:
            load = self._engine.current_load()
            return EngineLoad(int(load.running), int(load.waiting), float(load.kv_used_fraction))
        except Exception:  # the boundary to foreign code: nobody's request is worth less for it
            logger.exception("Worker %s: its engine cannot say how busy it is.", self.id)
            self._count_breach()
            return EngineLoad()

    def _count_breach(self) -> None:
        self.protocol_errors += 1

    def _ready(self) -> Pusher:
        if self.state is not WorkerState.READY or self._pusher is None:
            raise Unavailable(
                f"Model {self.names[0]!r} cannot be served now: its worker is {self.state}.",
                retry_after_s=self.back_in_s,
            )
        return self._pusher


@asynccontextmanager
async def _cancelled_at_the_end() -> AsyncIterator[TaskGroup]:
    """A task group for tasks that raise nothing: they are cancelled when it is left, and no group is made of errors."""
    try:
        async with anyio.create_task_group() as tasks:
            try:
                yield tasks
            finally:
                tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        (error,) = group.exceptions
        raise error from error.__cause__
