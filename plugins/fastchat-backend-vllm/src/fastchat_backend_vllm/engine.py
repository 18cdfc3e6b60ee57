"""The engine as the event loop sees it.

Every request has a task, which prepares it on another thread, hands it to vLLM and then sleeps until the end: outputs
go from vLLM's own task straight into the request's sink. (vLLM's `generate` wakes a task per token and request
instead, which takes two thirds more of the loop's time.)
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import anyio.to_thread

from fastchat_backend_vllm.embeddings import embed
from fastchat_backend_vllm.failures import as_serve_error
from fastchat_backend_vllm.loading import Opening, abandon_and_wait
from fastchat_backend_vllm.options import VllmOptions
from fastchat_backend_vllm.streams import Stream
from fastchat_serve import (
    ChatPrompt,
    Chunk,
    Embeddings,
    EmbedRequest,
    EngineInfo,
    EngineLoad,
    EngineSetup,
    GenerateRequest,
    Handle,
    Sink,
    StartupError,
    TextPrompt,
    TokenPrompt,
    Unavailable,
    pull,
)
from fastchat_serve.text import Lanes, is_slow

if TYPE_CHECKING:
    from fastchat_backend_vllm.model import Model

__all__ = ["VllmEngine"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_LET_GO_S = 2.0
"""What requests get to be aborted."""
_SHUTDOWN_S = 5
"""What vLLM's processes get to end by themselves."""
_KILL_S = 15.0
"""After that long, with all that vLLM adds to it, they are killed."""


class VllmEngine:
    """vLLM's `AsyncLLM`; a `PushEngine`."""

    def __init__(self, setup: EngineSetup) -> None:
        if not isinstance(setup.options, VllmOptions):
            raise TypeError(f"options must be VllmOptions, not {type(setup.options).__name__}")
        self._setup, self._options = setup, setup.options
        self._llm: Any = None
        self._model: Model | None = None
        self._death: BaseException | None = None

    async def __aenter__(self) -> Self:
        self._death = None
        self._streams: dict[Stream, asyncio.Task[None]] = {}
        self._embedding = 0
        self._lanes = Lanes("fastchat-vllm")
        self._llm = await self._open()
        self._processes = list(self._llm.engine_core.resources.engine_manager.processes)
        try:
            await self._check()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for stream in list(self._streams):
            stream.fail(Unavailable("The model was unloaded."))
        await self._close()

    @property
    def info(self) -> EngineInfo:
        return self._loaded.info

    @property
    def fatal_error(self) -> BaseException | None:
        """Set once vLLM's process is gone, or the task that reads from it."""
        if self._death is None and self._llm is not None and self._llm.errored:
            self._death = self._llm.dead_error
            logger.critical("vLLM's engine process died")
        return self._death

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        stream = Stream(request.id, sink)
        prepare = partial(self._loaded.intake.job, request)
        stream.preparation = self._lanes.submit(prepare, slow=is_slow(request))
        self._streams[stream] = asyncio.get_running_loop().create_task(self._run(stream, request))
        return stream

    def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        return pull(self.start, request)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        texts = await self._off_loop(partial(self._loaded.prompts.inputs, request), slow=is_slow(request))
        self._embedding += 1
        try:
            return await embed(self._llm, request, texts)
        finally:
            self._embedding -= 1

    async def tokenize(self, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]:
        return tuple(await self._off_loop(partial(self._loaded.prompts.token_ids, prompt), slow=is_slow(prompt)))

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        slow = is_slow(TokenPrompt(token_ids))
        return await self._off_loop(partial(self._loaded.prompts.text, token_ids), slow=slow)

    async def render(self, prompt: ChatPrompt) -> str:
        return await self._off_loop(partial(self._loaded.prompts.render, prompt), slow=is_slow(prompt))

    def current_load(self) -> EngineLoad:
        begun = held = 0
        for stream in self._streams:
            if stream.answer is not None and stream.answer.begun:
                begun += 1
                held += stream.answer.tokens_held
        cache = 0 if self._model is None else self._model.cache_tokens
        return EngineLoad(
            running=begun + self._embedding,
            waiting=len(self._streams) - begun,
            kv_used_fraction=min(held / cache, 1.0) if cache else 0.0,
        )

    # ------------------------------------------------------------------------------------- a request

    async def _run(self, stream: Stream, request: GenerateRequest) -> None:
        try:
            await self._answer(stream, request)
        except asyncio.CancelledError:
            if not stream.aborted:
                stream.fail(Unavailable("The model was unloaded."))
        except Exception as error:  # whatever it was, the caller is told
            stream.fail(as_serve_error(error, request.id))
        finally:
            self._streams.pop(stream, None)
            stream.end()

    async def _answer(self, stream: Stream, request: GenerateRequest) -> None:
        assert stream.preparation is not None
        job = await asyncio.wrap_future(stream.preparation)
        if stream.over.is_set():
            return
        stream.begin(job.answer, only_scores=job.only_scores)
        if job.core is None:
            stream.push(job.answer.end())
            return
        collector = await self._llm.add_request(job.core.request_id, job.core, job.core.params)
        try:
            collector.put = stream.put
            if (output := collector.output) is not None:  # came while the request was on its way
                stream.put(output)
            await stream.over.wait()
        finally:
            if not stream.done and not self._llm.errored:
                await self._llm.abort(collector.request_id, internal=True)

    async def _off_loop(self, work: Callable[[], _T], *, slow: bool) -> _T:
        return await asyncio.wrap_future(self._lanes.submit(work, slow=slow))

    # ----------------------------------------------------------------------------- opening and closing

    async def _open(self) -> Any:
        opening = Opening(self._setup, self._options)
        try:
            return await anyio.to_thread.run_sync(opening.run, abandon_on_cancel=True)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(abandon_and_wait, opening)
            raise

    async def _check(self) -> None:
        """See what has been loaded, and load the adapters."""
        from fastchat_backend_vllm.model import assemble

        self._setup.progress("checking the model")
        tasks = await self._llm.get_supported_tasks()
        self._model = await anyio.to_thread.run_sync(assemble, self._llm, tasks, self._setup, self._options)
        if not self._model.info.capabilities:
            raise StartupError("this model neither generates nor embeds")
        for name, adapter in self._model.adapters.items():
            self._setup.progress(f"loading the adapter {name}")
            try:
                await self._llm.add_lora(adapter)
            except Exception as error:  # the process sends its failure as text
                reason = str(error).strip().split("\n", 1)[0]
                raise StartupError(f"the adapter {name!r} does not fit the model: {reason}") from error

    async def _close(self) -> None:
        """End every stream and vLLM's processes, for a bounded time."""
        with anyio.CancelScope(shield=True):
            if tasks := list(self._streams.values()):
                await asyncio.wait(tasks, timeout=_LET_GO_S)
            for task in self._streams.values():
                task.cancel()
            self._lanes.close()
            llm, self._llm, self._model = self._llm, None, None
            if llm.output_handler is not None:
                llm.output_handler.cancel()  # or it would report the shutdown as a failure
            with anyio.move_on_after(_KILL_S):
                await anyio.to_thread.run_sync(partial(llm.shutdown, timeout=_SHUTDOWN_S), abandon_on_cancel=True)
            for process in self._processes:
                if process.is_alive():
                    process.kill()
            del llm, self._processes
            await anyio.to_thread.run_sync(gc.collect)  # its parts refer to each other

    @property
    def _loaded(self) -> Model:
        if self._model is None:
            raise RuntimeError("the engine is not open")
        return self._model
