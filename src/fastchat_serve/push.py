"""Either form of an engine's stream from the other.

`pull` makes the async generator of the contract out of a push engine's `start`; `Pusher` gives any
engine a `start`, at the price of one task per request. The worker drives sinks everywhere and so
needs only the push form; everyone who wants to read a stream needs only `pull`.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable

import anyio
from anyio.abc import TaskGroup

from fastchat_serve.engine import Chunk, Engine, GenerateRequest, Handle, PushEngine, Sink
from fastchat_serve.errors import EngineError

__all__ = ["LET_GO_S", "Pusher", "pull"]

logger = logging.getLogger(__name__)

LET_GO_S = 5.0
"""How long closing a pulled stream waits for its engine."""


class _Mailbox:
    """A sink that keeps what arrives until it is read."""

    def __init__(self) -> None:
        self._chunks: deque[Chunk] = deque()
        self._news = anyio.Event()
        self._ended = False
        self._error: Exception | None = None

    def push(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)
        self._news.set()

    def end(self, error: Exception | None) -> None:
        self._ended, self._error = True, error
        self._news.set()

    async def next(self) -> Chunk | None:
        """The next chunk, None at the end."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._news = anyio.Event()
            await self._news.wait()
        return self._chunks.popleft()

    async def ended(self) -> None:
        """Return once `end` was called; what still arrives is not kept."""
        while not self._ended:
            self._chunks.clear()
            self._news = anyio.Event()
            await self._news.wait()


async def pull(
    start: Callable[[GenerateRequest, Sink], Handle], request: GenerateRequest
) -> AsyncGenerator[Chunk, None]:
    """Read the answer that `start` pushes. Closing early aborts, and returns once the engine let go.

    An engine that does not let go is left behind after `LET_GO_S`.
    """
    mailbox = _Mailbox()
    handle = start(request, mailbox)
    try:
        while (chunk := await mailbox.next()) is not None:
            yield chunk
    finally:
        handle.abort()
        with anyio.move_on_after(LET_GO_S, shield=True) as patience:
            await mailbox.ended()
        if patience.cancelled_caught:
            logger.error("Request %s: the engine did not let go of it within %g s.", request.id, LET_GO_S)


class _Pull:
    """One generator, driven by a task of its own into a sink."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._scope = anyio.CancelScope()
        self._aborted = False

    def abort(self) -> None:
        self._aborted = True
        self._scope.cancel()

    async def run(self, engine: Engine, request: GenerateRequest) -> None:
        error: Exception | None = EngineError("The engine was closed.")  # unless we learn of another end
        try:
            if not self._aborted:
                await self._drive(engine.generate_stream(request))
            error = None
        except Exception as caught:  # the boundary to foreign code: whatever it was, the sink is told
            error = caught
        except anyio.get_cancelled_exc_class():
            if anyio.current_effective_deadline() == -math.inf:
                raise
            # The engine leaked a cancellation of its own: it ends this answer, not all of the worker's.
            error = EngineError("The engine cancelled this answer.")
        finally:
            self._sink.end(None if self._aborted else error)

    async def _drive(self, chunks: AsyncGenerator[Chunk, None]) -> None:
        try:
            with self._scope:
                async for chunk in chunks:
                    if self._aborted:
                        break
                    self._sink.push(chunk)
        finally:
            await chunks.aclose()  # outside the scope, so that the engine may wait while it cleans up


class Pusher:
    """Starts answers of any engine. `tasks` owns the tasks that pull-only engines need."""

    def __init__(self, engine: Engine, tasks: TaskGroup) -> None:
        self._engine, self._tasks = engine, tasks
        self._native = _push_form(engine)

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        if self._native is not None:
            return self._native(request, sink)
        run = _Pull(sink)
        self._tasks.start_soon(run.run, self._engine, request)
        return run


def _push_form(engine: Engine) -> Callable[[GenerateRequest, Sink], Handle] | None:
    """Its `start`, if that is the contract's: many a class has a method of that name, to open itself for instance."""
    if not isinstance(engine, PushEngine):
        return None
    parameters = list(inspect.signature(engine.start).parameters)
    return engine.start if parameters[:2] == ["request", "sink"] else None
