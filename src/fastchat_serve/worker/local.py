"""A worker whose engine lives in this process and is driven by this event loop.

It adds to an engine what every engine needs: slots and a bounded queue (`slots.py`), time limits and
the proof of the contract (`job.py`, `embed_job.py`), a life cycle, and drain.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from fastchat_serve.config import Timeouts
from fastchat_serve.engine import (
    ChatPrompt,
    Embeddings,
    EmbedRequest,
    Engine,
    EngineInfo,
    EngineLoad,
    GenerateRequest,
    Handle,
    Sink,
    TextPrompt,
)
from fastchat_serve.errors import EngineError, Overloaded, ServeError, Unavailable
from fastchat_serve.push import Pusher
from fastchat_serve.worker.base import WorkerLoad, WorkerState
from fastchat_serve.worker.embed_job import EmbedJob
from fastchat_serve.worker.job import Job
from fastchat_serve.worker.slots import Slots

__all__ = ["ABORT_GRACE_S", "LocalWorker"]

logger = logging.getLogger(__name__)

ABORT_GRACE_S = 5.0
"""An engine that has not let go of an aborted request after this long is taken for broken."""

CHECK_INTERVAL_S = 0.1
"""How often time limits are checked, and so how precisely they are kept."""


class LocalWorker:
    """See `base.Worker`. ``await tasks.start(worker.run)`` opens the engine; `stop` ends `run`.

    Args:
        engine: Not yet open.
        names: What clients call the model.
        concurrency: Slots: requests that generate at once.
        queue: Requests that wait at most.
        timeouts: Limits for every request; a request may ask for less.
        tool_parser: Overrides what the engine says of its model.
        abort_grace_s: How long an engine may take to let go of an aborted request.
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
    ) -> None:
        self.id = f"{names[0]}-{uuid.uuid4().hex[:8]}"
        self.names, self.speed = names, speed
        self.state = WorkerState.LOADING
        self.reason = ""
        """Why the worker failed, for the operator."""
        self._engine = engine
        self._timeouts = timeouts or Timeouts()
        self._tool_parser = tool_parser
        self._abort_grace_s = abort_grace_s
        self._slots = Slots(concurrency, queue, time.monotonic)
        self._jobs: set[Job | EmbedJob] = set()
        self._pusher: Pusher | None = None
        self._stopping = anyio.Event()

    # ---------------------------------------------------------------------------------- life cycle

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Keep the engine open until `stop`. It is started once it can serve.

        Raises whatever the engine raises while it loads.
        """
        try:
            async with self._opened() as engine, anyio.create_task_group() as tasks:
                self._pusher = Pusher(engine, tasks)
                if self.state is WorkerState.LOADING:
                    self.state = WorkerState.READY
                tasks.start_soon(self._keep_limits)
                task_status.started()
                try:
                    await self._stopping.wait()
                finally:
                    await self._break_off()
                    tasks.cancel_scope.cancel()
        except Exception:
            self.fail("The engine could not be opened, or broke off.")
            raise
        finally:
            self._pusher = None
            for job in list(self._jobs):
                job.forget()
            if self.state is not WorkerState.FAILED:
                self.state = WorkerState.STOPPED

    def stop(self) -> None:
        """End `run`. What is still under way is told so and aborted: `drain` before."""
        self._stopping.set()

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
        """Take this worker out of service."""
        logger.error("Worker %s failed: %s", self.id, reason)
        self.state, self.reason = WorkerState.FAILED, reason
        self.expel(EngineError("The engine that worked on this request failed."))
        for job in list(self._jobs):
            job.forget()

    def refuse(self) -> None:
        """Take no new work from now on."""
        if self.state in (WorkerState.LOADING, WorkerState.READY):
            self.state = WorkerState.DRAINING

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Engine]:
        async with self._engine as engine:
            if not isinstance(engine.info, EngineInfo):
                raise TypeError(f"the engine's info is of type {type(engine.info).__name__}, not EngineInfo")
            yield engine

    async def _break_off(self) -> None:
        self.refuse()
        self.expel(Unavailable("This worker is shutting down.", retry_after_s=1.0))
        with anyio.move_on_after(self._abort_grace_s, shield=True):
            await self._slots.wait_idle()

    async def _keep_limits(self) -> None:
        while True:
            await anyio.sleep(CHECK_INTERVAL_S)
            if (error := self._engine.fatal_error) is not None:
                return self.fail(f"The engine broke: {type(error).__name__}: {error}")
            now = time.monotonic()
            obeyed = [job.check(now, self._abort_grace_s) for job in list(self._jobs)]
            if not all(obeyed):
                return self.fail(f"The engine kept an aborted request for more than {self._abort_grace_s:g} s.")

    # ------------------------------------------------------------------------------------- serving

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    @property
    def queue_length(self) -> int:
        return self._slots.running + self._slots.waiting

    @property
    def tool_parser(self) -> str:
        return self.info.tool_parser if self._tool_parser is None else self._tool_parser

    def load(self) -> WorkerLoad:
        slots = self._slots
        engine = EngineLoad() if self._pusher is None else self._engine.current_load()
        return WorkerLoad(slots.running, slots.waiting, slots.count, slots.queue_limit, engine)

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        job = Job(
            request,
            sink,
            start=self._ready().start,
            slots=self._slots,
            timeouts=self._timeouts,
            clock=time.monotonic,
            let_go=self._jobs.discard,
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
        job = EmbedJob(
            request, embed=self._engine.embed, slots=self._slots, timeouts=self._timeouts, clock=time.monotonic
        )
        self._jobs.add(job)
        try:
            return await job.run()
        finally:
            self._jobs.discard(job)

    async def tokenize(self, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]:
        self._ready()
        return await self._engine.tokenize(prompt)

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        self._ready()
        return await self._engine.detokenize(token_ids)

    def _ready(self) -> Pusher:
        if self.state is not WorkerState.READY or self._pusher is None:
            raise Unavailable(
                f"Model {self.names[0]!r} cannot be served now: its worker is {self.state}.", retry_after_s=1.0
            )
        return self._pusher
