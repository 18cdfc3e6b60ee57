"""The engine as the event loop sees it: streams in, sinks out, nothing that waits.

The loop's thread owns the streams. Others prepare requests (`preparation.py`), and one of its own runs the model
(`stepper.py`); what one step brought for all streams comes back in one call.
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

from fastchat_backend_mlx.failures import as_serve_error
from fastchat_backend_mlx.generation import News
from fastchat_backend_mlx.loading import LoadedModel, load
from fastchat_backend_mlx.options import MlxOptions
from fastchat_backend_mlx.stepper import Stepper
from fastchat_serve import (
    ChatPrompt,
    Chunk,
    EngineError,
    EngineInfo,
    EngineLoad,
    EngineSetup,
    GenerateRequest,
    Handle,
    ServeError,
    Sink,
    StartupError,
    TextPrompt,
    TokenPrompt,
    Unavailable,
    pull,
)
from fastchat_serve.text import Lanes, is_slow

__all__ = ["MlxEngine"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_CLOSE_TIMEOUT_S = 30.0
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


class MlxEngine:
    """A model of mlx-lm with continuous batching; a `PushEngine`.

    Attributes:
        fatal_error: What ended the engine's thread, None while it is well. Every request fails from then on.
    """

    def __init__(self, setup: EngineSetup) -> None:
        if not isinstance(setup.options, MlxOptions):
            raise TypeError(f"options must be MlxOptions, not {type(setup.options).__name__}")
        self._setup, self._options = setup, setup.options
        self.fatal_error: BaseException | None = None
        self._model: LoadedModel | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self.fatal_error = None
        self._streams: set[_Stream] = set()
        self._stepper = stepper = Stepper(
            lambda: load(self._setup_for(stepper), self._options),
            deliver=partial(self._post, self._on_news),
            died=partial(self._post, self._on_death),
        )
        stepper.start()
        try:
            self._model = await asyncio.wrap_future(stepper.loaded)
        except BaseException:
            await self._end_thread()
            raise
        self._preparing = Lanes("fastchat-mlx-prompts")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._preparing.close()
        await self._end_thread()
        self._end_all(Unavailable("The model was unloaded."))
        self._model = None

    @property
    def info(self) -> EngineInfo:
        return self._loaded.info

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        stream = _Stream(sink, self._on_abort)
        if self.fatal_error is not None:
            self._loop.call_soon(stream.end, self._dead())
            return stream
        self._streams.add(stream)
        stream.preparation = self._preparing.submit(
            partial(self._prepare, request, stream, time.monotonic()),
            slow=is_slow(request),
        )
        return stream

    def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        return pull(self.start, request)

    async def tokenize(self, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]:
        work = partial(self._loaded.preparation.prompts.token_ids, prompt)
        return tuple(await self._off_loop(work, slow=is_slow(prompt)))

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        work = partial(self._loaded.preparation.prompts.text, token_ids)
        return await self._off_loop(work, slow=is_slow(TokenPrompt(token_ids)))

    async def render(self, prompt: ChatPrompt) -> str:
        work = partial(self._loaded.preparation.prompts.render, prompt)
        return await self._off_loop(work, slow=is_slow(prompt))

    def current_load(self) -> EngineLoad:
        model = self._loaded
        running = min(model.generation.running, len(self._streams))
        most_tokens = self._options.max_batch * model.info.context_length
        return EngineLoad(running, len(self._streams) - running, model.generation.used_tokens / most_tokens)

    def die(self) -> None:
        """Break for good, as a lost device would: for the conformance kit, which proves what happens then."""
        self._stepper.die(RuntimeError("the engine was told to die"))

    # ---------------------------------------------------------------------- on the preparing threads

    def _prepare(self, request: GenerateRequest, stream: _Stream, accepted: float) -> None:
        try:
            answer = self._loaded.preparation.answer(request, stream, accepted)
        except Exception as error:  # the thread's boundary: whatever it was, the stream is told
            if not isinstance(error, ServeError):
                logger.exception("request %s could not be prepared", request.id)
            self._post(self._on_news, [News(stream, ended=True, error=as_serve_error(error))])
        else:
            self._stepper.submit(answer)

    # ------------------------------------------------------------------------------ from other threads

    def _setup_for(self, stepper: Stepper) -> EngineSetup:
        """The setup, with a progress that gives up loading once `stepper` is told to stop."""

        def progress(stage: str, fraction: float | None = None) -> None:
            if stepper.stopping:
                raise StartupError("loading was cancelled")
            self._setup.progress(stage, fraction)

        return EngineSetup(self._setup.model, self._options, progress)

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
        else:
            self._stepper.wake()

    def _on_death(self, error: BaseException) -> None:
        logger.critical("the engine's thread died", exc_info=error)
        self.fatal_error = error.with_traceback(None)  # whose frames would keep the model in memory
        self._end_all(self._dead())

    def _end_all(self, error: ServeError) -> None:
        while self._streams:
            self._streams.pop().end(error)

    def _dead(self) -> EngineError:
        return EngineError(f"The engine has stopped working ({type(self.fatal_error).__name__}).")

    async def _end_thread(self) -> None:
        self._stepper.stop()
        with anyio.CancelScope(shield=True):
            ended = await anyio.to_thread.run_sync(self._stepper.join, _CLOSE_TIMEOUT_S)
        if not ended:
            logger.error("the engine's thread is stuck; its memory is not released")
        del self._stepper

    async def _off_loop(self, work: Callable[[], _T], *, slow: bool) -> _T:
        return await asyncio.wrap_future(self._preparing.submit(work, slow=slow))

    @property
    def _loaded(self) -> LoadedModel:
        if self._model is None:
            raise RuntimeError("the engine is not open")
        return self._model
