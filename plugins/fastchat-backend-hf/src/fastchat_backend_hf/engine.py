"""The engine as the event loop sees it: streams in, sinks out, nothing that waits.

The loop's thread owns the streams. Others prepare requests (templates, tokenizing, constraints), so that a long prompt
holds up neither the loop nor the batch. The engine's own runs the model (`stepper.py`); what one step
brought for all streams comes back in one call.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from functools import partial
from typing import Self, TypeVar

import anyio
import anyio.to_thread

from fastchat_backend_hf.devices import empty_cache
from fastchat_backend_hf.embeddings import EmbedJob
from fastchat_backend_hf.failures import as_serve_error
from fastchat_backend_hf.generation import News
from fastchat_backend_hf.loading import LoadedModel, load
from fastchat_backend_hf.options import HfOptions
from fastchat_backend_hf.stepper import Stepper
from fastchat_serve import (
    ChatPrompt,
    Chunk,
    Embeddings,
    EmbedRequest,
    EngineError,
    EngineInfo,
    EngineLoad,
    EngineSetup,
    GenerateRequest,
    Handle,
    InvalidRequest,
    ServeError,
    Sink,
    TextPrompt,
    TokenPrompt,
    Unavailable,
    pull,
)
from fastchat_serve.text import Lanes, is_slow

__all__ = ["HfEngine"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_UNLOAD_TIMEOUT_S = 30.0
"""How long unloading waits for the step under way."""


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


class HfEngine:
    """A transformers model with continuous batching; a `PushEngine`.

    Attributes:
        fatal_error: What ended the engine's thread, None while it is well. Every request fails from then on.
    """

    def __init__(self, setup: EngineSetup) -> None:
        if not isinstance(setup.options, HfOptions):
            raise TypeError(f"options must be HfOptions, not {type(setup.options).__name__}")
        self._setup, self._options = setup, setup.options
        self.fatal_error: BaseException | None = None
        self._model: LoadedModel | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self.fatal_error = None
        self._streams: set[_Stream] = set()
        self._jobs: set[EmbedJob] = set()
        model = await anyio.to_thread.run_sync(load, self._setup, self._options)
        self._model = model
        self._preparing = Lanes("fastchat-hf-prompts")
        self._stepper = Stepper(
            model.generation, model.embedder, deliver=self._post_news, died=partial(self._post, self._on_death)
        )
        self._stepper.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._stepper.stop()
        self._preparing.close()
        with anyio.CancelScope(shield=True):
            ended = await anyio.to_thread.run_sync(self._stepper.join, _UNLOAD_TIMEOUT_S)
        self._end_all(Unavailable("The model was unloaded."))
        if not ended:
            logger.error("the engine's thread is stuck in a step; its memory is not released")
        del self._stepper
        self._model = None
        gc.collect()
        empty_cache()

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
        texts = await self._off_loop(is_slow(request), partial(self._loaded.prompts.inputs, request))
        if self.fatal_error is not None:
            raise self._dead()
        job = EmbedJob(texts)
        self._jobs.add(job)
        try:
            self._stepper.submit(job)
            vectors = await asyncio.wrap_future(job.future)
        finally:
            self._jobs.discard(job)
        return Embeddings(vectors.astype("<f4").tobytes(), vectors.shape[1], sum(map(len, texts)))

    async def tokenize(self, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]:
        return tuple(await self._off_loop(is_slow(prompt), partial(self._loaded.prompts.token_ids, prompt)))

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        return await self._off_loop(is_slow(TokenPrompt(token_ids)), partial(self._loaded.prompts.text, token_ids))

    async def render(self, prompt: ChatPrompt) -> str:
        return await self._off_loop(is_slow(prompt), partial(self._loaded.prompts.render, prompt))

    def current_load(self) -> EngineLoad:
        generation = self._loaded.generation
        if generation is None:
            return EngineLoad(running=len(self._jobs))
        running = min(generation.running, len(self._streams))
        return EngineLoad(running, len(self._streams) - running, generation.used_fraction)

    def die(self) -> None:
        """Break for good, as a lost device would: for the conformance kit, which proves what happens then."""
        self._stepper.die(RuntimeError("the engine was told to die"))

    # ---------------------------------------------------------------------- on the preparing threads

    def _prepare(self, request: GenerateRequest, stream: _Stream, accepted: float) -> None:
        try:
            self._check_adapter(request)
            sequence = self._loaded.prompts.sequence(request, stream, accepted)
        except Exception as error:  # the thread's boundary: whatever it was, the stream is told
            if not isinstance(error, ServeError):
                logger.exception("request %s could not be prepared", request.id)
            self._post_news([News(stream, ended=True, error=as_serve_error(error))])
        else:
            self._stepper.submit(sequence)

    def _check_adapter(self, request: GenerateRequest) -> None:
        if request.adapter is not None and request.adapter not in self.info.adapters:
            raise InvalidRequest(f"This model has no adapter {request.adapter!r}.", param="model")

    # ------------------------------------------------------------------------------ from other threads

    def _post(self, callback: Callable[[_T], None], value: _T) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, value)
        except RuntimeError:
            logger.debug("the event loop is closed; nobody is left to tell")

    def _post_news(self, news: list[News]) -> None:
        if news:
            self._post(self._on_news, news)

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
        for job in self._jobs:
            if not job.future.done():
                job.future.set_exception(error)

    def _dead(self) -> EngineError:
        return EngineError(f"The engine has stopped working ({type(self.fatal_error).__name__}).")

    async def _off_loop(self, slow: bool, work: Callable[[], _T]) -> _T:
        return await asyncio.wrap_future(self._preparing.submit(work, slow=slow))

    @property
    def _loaded(self) -> LoadedModel:
        if self._model is None:
            raise RuntimeError("the engine is not open")
        return self._model
