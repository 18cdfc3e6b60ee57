"""The engine as the event loop sees it: streams in, sinks out, nothing that waits.

The loop's thread owns the streams. Others prepare requests (templates, tokenizing, constraints), so that a long prompt
holds up neither the loop nor the batch. The engine's own runs the model (`stepper.py`); what one step brought for all
streams comes back in one call.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from functools import partial
from typing import Self, TypeVar

import anyio
import anyio.to_thread

from fastchat_serve.engine import (
    ChatPrompt,
    Chunk,
    Embeddings,
    EmbedRequest,
    EngineInfo,
    EngineLoad,
    GenerateRequest,
    Handle,
    Sink,
    TextPrompt,
    TokenPrompt,
)
from fastchat_serve.errors import EngineError, InvalidRequest, ServeError, Unavailable
from fastchat_serve.hookspecs import EngineSetup
from fastchat_serve.push import pull
from fastchat_serve.stepping.embedding import EmbedJob
from fastchat_serve.stepping.failures import as_serve_error
from fastchat_serve.stepping.model import News, SteppedModel
from fastchat_serve.stepping.stepper import Stepper
from fastchat_serve.text import Lanes, is_slow

__all__ = ["CLOSE_TIMEOUT_S", "SteppingEngine"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

CLOSE_TIMEOUT_S = 30.0
"""How long closing waits for the step under way, or for the end of loading."""


class _Stream:
    """One request on the loop's side; also its handle. `on_abort` is called at most once."""

    def __init__(self, sink: Sink, on_abort: Callable[[_Stream], None]) -> None:
        self.aborted = False
        self.preparation: Future[None] | None = None
        self._sink, self._on_abort = sink, on_abort
        self._ended = False

    def abort(self) -> None:
        if not (self.aborted or self._ended):
            self.aborted = True
            self._on_abort(self)

    def push(self, chunk: Chunk) -> None:
        if not (self.aborted or self._ended):
            self._sink.push(chunk)

    def end(self, error: ServeError | None) -> None:
        if not self._ended:
            self._ended = True
            self._sink.end(None if self.aborted else error)
            self.aborted = True  # for a thread that could not be waited for


class SteppingEngine:
    """A model that is loaded, stepped and closed on a thread of its own; a `PushEngine`.

    Args:
        load: Loads the model, and tells `EngineSetup.progress` how far it is: that raises once loading is cancelled.
            Raises `StartupError`.
        name: That of the backend, for the names of threads.
        leave: Called last on the engine's thread, also if `load` failed: gives back what the library keeps for it.

    Attributes:
        fatal_error: What ended the engine's thread, None while it is well. Every request fails from then on.
    """

    def __init__(
        self,
        setup: EngineSetup,
        load: Callable[[EngineSetup], SteppedModel],
        *,
        name: str,
        leave: Callable[[], None] | None = None,
    ) -> None:
        self._setup, self._load, self._leave, self._name = setup, load, leave, f"fastchat-{name}"
        self.fatal_error: BaseException | None = None
        self._stepper: Stepper | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self.fatal_error = None
        self._streams: set[_Stream] = set()
        self._jobs: set[EmbedJob] = set()
        self._stepper = Stepper(
            self._setup,
            self._load,
            self._leave,
            name=f"{self._name}-engine",
            deliver=partial(self._post, self._on_news),
            died=partial(self._post, self._on_death),
        )
        self._stepper.start()
        try:
            await asyncio.wrap_future(self._stepper.loaded)
        except BaseException:
            await self._end_thread(self._stepper)
            self._stepper = None
            raise
        self._preparing = Lanes(f"{self._name}-prompts")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._preparing.close()
        with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True) as patience:
            await anyio.to_thread.run_sync(self._preparing.join, abandon_on_cancel=True)
        if patience.cancelled_caught:
            logger.error("a request is still being prepared; the model stays in memory")
        elif self._stepper is not None:
            await self._end_thread(self._stepper)
        self._stepper = None
        self._end_all(Unavailable("The model was unloaded."))

    @property
    def info(self) -> EngineInfo:
        return self._loaded.info

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        stream = _Stream(sink, self._on_abort)
        if self.fatal_error is not None:
            self._loop.call_soon(stream.end, self._dead())
            return stream
        self._streams.add(stream)
        prepare = partial(self._prepare, request, stream, time.monotonic())
        stream.preparation = self._preparing.submit(prepare, slow=is_slow(request))
        return stream

    def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        return pull(self.start, request)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        texts = await self._off_loop(partial(self._loaded.prompts.inputs, request), slow=is_slow(request))
        if not texts:
            raise InvalidRequest("There is nothing to embed.", param="input")
        if self.fatal_error is not None:
            raise self._dead()
        job = EmbedJob(texts)
        self._jobs.add(job)
        try:
            self._running.submit(job)
            return await asyncio.wrap_future(job.future)
        finally:
            self._jobs.discard(job)

    async def tokenize(self, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]:
        return tuple(await self._off_loop(partial(self._loaded.prompts.token_ids, prompt), slow=is_slow(prompt)))

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        slow = is_slow(TokenPrompt(token_ids))
        return await self._off_loop(partial(self._loaded.prompts.text, token_ids), slow=slow)

    async def render(self, prompt: ChatPrompt) -> str:
        return await self._off_loop(partial(self._loaded.prompts.render, prompt), slow=is_slow(prompt))

    def current_load(self) -> EngineLoad:
        model = None if self._stepper is None else self._stepper.model
        if model is None:
            return EngineLoad()
        if model.generation is None:
            return EngineLoad(running=len(self._jobs))
        running = min(model.generation.running, len(self._streams))
        return EngineLoad(running, len(self._streams) - running, model.generation.used_fraction)

    def die(self) -> None:
        """Break for good, as a lost device would: for the conformance kit, which proves what happens then."""
        self._running.die(RuntimeError("the engine was told to die"))

    # ---------------------------------------------------------------------- on the preparing threads

    def _prepare(self, request: GenerateRequest, stream: _Stream, accepted: float) -> None:
        try:
            work = self._loaded.prepare(request, stream, accepted)
        except Exception as error:  # the thread's boundary: whatever it was, the stream is told
            if not isinstance(error, ServeError):
                logger.exception("request %s could not be prepared", request.id)
            self._post(self._on_news, [News(stream, ended=True, error=as_serve_error(error))])
        else:
            self._running.submit(work)

    # ------------------------------------------------------------------------------ from other threads

    def _post(self, callback: Callable[[_T], None], value: _T) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, value)
        except RuntimeError:
            logger.debug("the event loop is closed; nobody is left to tell")

    # ------------------------------------------------------------------------------- on the loop's thread

    def _on_news(self, news: list[News]) -> None:
        for item in news:
            stream = item.stream
            assert isinstance(stream, _Stream)
            if item.chunk is not None:
                stream.push(item.chunk)
            if item.ended:
                self._streams.discard(stream)
                stream.end(item.error)

    def _on_abort(self, stream: _Stream) -> None:
        """Let go of `stream` at once if nobody has begun with it, otherwise before the next step."""
        if stream.preparation is not None and stream.preparation.cancel():
            self._loop.call_soon(self._on_news, [News(stream, ended=True)])
        elif self._stepper is not None:
            self._stepper.wake()

    def _on_death(self, error: BaseException) -> None:
        self.fatal_error = error
        self._end_all(self._dead())

    def _end_all(self, error: ServeError) -> None:
        while self._streams:
            self._streams.pop().end(error)
        for job in self._jobs:
            job.fail(error)

    def _dead(self) -> EngineError:
        return EngineError(f"The engine has stopped working ({type(self.fatal_error).__name__}).")

    async def _end_thread(self, stepper: Stepper) -> None:
        stepper.stop()
        with anyio.CancelScope(shield=True):
            ended = await anyio.to_thread.run_sync(stepper.join, CLOSE_TIMEOUT_S)
        if not ended:
            logger.error("the engine's thread is stuck; its memory is not released")

    async def _off_loop(self, work: Callable[[], _T], *, slow: bool) -> _T:
        task = asyncio.current_task()
        try:
            return await asyncio.wrap_future(self._preparing.submit(work, slow=slow))
        except asyncio.CancelledError:
            if task is not None and task.cancelling():
                raise
            raise Unavailable("The model was unloaded.") from None  # before anybody had begun with it

    @property
    def _running(self) -> Stepper:
        if self._stepper is None:
            raise Unavailable("The model was unloaded.")
        return self._stepper

    @property
    def _loaded(self) -> SteppedModel:
        model = None if self._stepper is None else self._stepper.model
        if model is None:
            raise RuntimeError("the engine is not open")
        return model
