"""What the host does once SGLang is open: one task per request, one write per turn of the loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import uuid
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

import numpy

from fastchat_backend_sglang import constraints
from fastchat_backend_sglang.answer import AnswerInTheMaking
from fastchat_backend_sglang.failure import read_failure
from fastchat_backend_sglang.faults import as_fault, from_abort, from_exception
from fastchat_backend_sglang.link import (
    Abort,
    Answer,
    Broken,
    Connection,
    Detokenize,
    Embed,
    Ended,
    Generate,
    Load,
    Piece,
    Question,
    Render,
    ToHost,
    Tokenize,
)
from fastchat_backend_sglang.loading import Loaded
from fastchat_backend_sglang.sampling import sampling_params
from fastchat_serve import (
    Capability,
    ChatPrompt,
    Embeddings,
    EmbedRequest,
    EngineError,
    GenerateRequest,
    ServeError,
    TextPrompt,
    TokenPrompt,
    Unsupported,
)
from fastchat_serve.text import Lanes, is_slow

__all__ = ["serve"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Prompt = TextPrompt | TokenPrompt | ChatPrompt

_LOAD_INTERVAL_S = 0.5

_LOST = "SGLang has lost one of its processes"


async def serve(loaded: Loaded, channel: socket.socket) -> None:
    """Answer until the server closes its end, or SGLang breaks."""
    serving = _Serving(loaded)
    async with asyncio.TaskGroup() as tasks:
        await serving.run(channel, tasks)


class _Job:
    """A request under way. `rid` is SGLang's name for it."""

    def __init__(self, key: int) -> None:
        # SGLang aborts all requests whose name *begins* with the one it is told, so none may begin with another.
        self.key, self.rid = key, uuid.uuid4().hex
        self.aborted = False
        self.task: asyncio.Task[None] | None = None


class _Serving:
    def __init__(self, loaded: Loaded) -> None:
        self._loaded, self._prompts = loaded, loaded.prompts
        self._engine, self._manager = loaded.engine, loaded.engine.tokenizer_manager
        self._seeded = Capability.SEED in loaded.info.capabilities
        self._jobs: dict[int, _Job] = {}
        self._over = asyncio.Event()
        self._lanes = Lanes("fastchat-sglang-prompts")
        self._load_reader = self._manager.load_snapshot_reader

    async def run(self, channel: socket.socket, tasks: asyncio.TaskGroup) -> None:
        self._tasks, self._loop = tasks, asyncio.get_running_loop()
        self._take_signals_back()
        self._watch_children()
        self._hide_shared_memory()
        self._connection = await Connection.over(channel, ToHost, self._on_message, self._over.set)
        load = tasks.create_task(self._tell_load())
        await self._over.wait()
        self._connection.close()
        for task in (load, *(job.task for job in self._jobs.values() if job.task is not None)):
            task.cancel()

    # ------------------------------------------------------------------------------------- messages

    def _on_message(self, message: ToHost) -> None:
        match message:
            case Generate():
                self._begin(message.key, partial(self._generate, message.request))
            case Abort():
                self._abort(message.key)
            case Embed() | Tokenize() | Detokenize() | Render():
                self._begin(message.key, partial(self._answer, message))

    def _begin(self, key: int, work: Callable[[_Job], Coroutine[Any, Any, None]]) -> None:
        job = self._jobs[key] = _Job(key)
        job.task = self._tasks.create_task(self._run(job, work))

    async def _run(self, job: _Job, work: Callable[[_Job], Coroutine[Any, Any, None]]) -> None:
        fault = None
        try:
            await work(job)
        except Exception as error:  # the boundary to SGLang: whatever it was, the server is told
            if not isinstance(error, ServeError | ValueError):
                logger.exception("a request failed")
            fault = as_fault(from_exception(error))
        finally:
            del self._jobs[job.key]
        self._connection.send(Ended(job.key, fault))

    def _abort(self, key: int) -> None:
        if (job := self._jobs.get(key)) is not None:
            job.aborted = True
            self._manager.abort_request(job.rid)

    # -------------------------------------------------------------------------------------- answers

    async def _generate(self, request: GenerateRequest, job: _Job) -> None:
        if request.adapter is not None and request.adapter not in self._loaded.info.adapters:
            raise Unsupported("This engine has no such adapter.", param="model")
        making = await self._off_loop(request, partial(self._prepare, request))
        if job.aborted:
            return
        if making.drawn:
            self._connection.send(Piece(job.key, making.finish()))
            return
        async with aclosing(await self._outputs(request, making, job.rid)) as outputs:
            async for out in outputs:
                if making.complete or job.aborted:  # what comes now tells only whether SGLang has let go
                    self._manager.abort_request(job.rid)
                    continue
                reason = out["meta_info"]["finish_reason"]
                if reason is not None and reason["type"] == "abort":
                    raise from_abort(reason, blame=request.constraint)
                if (chunk := making.feed(out)) is not None:
                    self._connection.send(Piece(job.key, chunk))
                if making.complete and reason is None:
                    self._manager.abort_request(job.rid)
        if not (making.complete or job.aborted):
            raise EngineError("The engine ended this answer without a reason.")

    def _prepare(self, request: GenerateRequest) -> AnswerInTheMaking:
        prepared = self._prompts.prepare(request)
        if request.constraint is not None:
            constraints.check(request.constraint)
        return AnswerInTheMaking(request, prepared, self._loaded.vocabulary, self._loaded.end_ids)

    async def _outputs(self, request: GenerateRequest, making: AnswerInTheMaking, rid: str) -> Any:
        scored = making.scores_prompt
        return await self._engine.async_generate(
            input_ids=[*making.prompt, *request.resume_token_ids],
            sampling_params=sampling_params(request, making.left, seeded=self._seeded),
            return_logprob=scored or request.logprobs is not None,
            logprob_start_len=0 if scored else -1,
            top_logprobs_num=max(request.logprobs or 0, (request.prompt_logprobs or 0) if scored else 0),
            lora_path=request.adapter,
            priority=request.priority,
            cache_salt=request.tenant or None,  # which keeps what was computed for one tenant from the others
            stream=True,
            rid=rid,
        )

    async def _answer(self, question: Question, job: _Job) -> None:
        value: Embeddings | tuple[int, ...] | str
        match question:
            case Embed():
                value = await self._embed(question.request, job)
            case Tokenize():
                prompt = question.prompt
                value = tuple(await self._off_loop(prompt, partial(self._prompts.token_ids, prompt)))
            case Detokenize():
                ids = question.token_ids
                value = await self._off_loop(TokenPrompt(ids), partial(self._prompts.text, ids))
            case Render():
                prompt = question.prompt
                value = await self._off_loop(prompt, partial(self._prompts.render, prompt))
        self._connection.send(Answer(job.key, value))

    async def _embed(self, request: EmbedRequest, job: _Job) -> Embeddings:
        from sglang.srt.managers.io_struct import EmbeddingReqInput

        texts = await self._off_loop(request, partial(self._prompts.inputs, request))
        whole = EmbeddingReqInput(input_ids=texts, rid=[f"{job.rid}{number:06}" for number in range(len(texts))])
        async with aclosing(self._manager.generate_request(whole)) as results:
            found = await anext(results)
        vectors = numpy.asarray([each["embedding"] for each in found], dtype="<f4")
        vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
        return Embeddings(vectors.tobytes(), vectors.shape[1], sum(map(len, texts)))

    async def _off_loop(self, about: GenerateRequest | EmbedRequest | Prompt, work: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._lanes.submit(work, slow=is_slow(about)))

    # ------------------------------------------------------------------------------------- SGLang

    def _take_signals_back(self) -> None:
        """SGLang handles SIGTERM and SIGQUIT from its first request on: it drains, or kills everything."""
        self._manager.auto_create_handle_loop()
        for number in (signal.SIGTERM, signal.SIGQUIT):
            self._loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    def _watch_children(self) -> None:
        """Notice at once that a process of SGLang is gone; SGLang itself would look once a second."""
        for pid in self._engine.get_all_child_pids():
            watched = os.pidfd_open(pid)
            self._loop.add_reader(watched, self._on_death, watched)

    def _on_death(self, watched: int) -> None:
        self._loop.remove_reader(watched)
        if not self._over.is_set():
            reason = read_failure()
            self._connection.send(Broken(f"SGLang's scheduler failed: {reason}" if reason else _LOST))
            self._connection.flush()
            self._over.set()

    def _hide_shared_memory(self) -> None:
        """Take the name from SGLang's piece of shared memory once all have it: it would be left behind in the end."""
        self._load_reader.read_all()
        with contextlib.suppress(OSError):
            os.unlink(self._load_reader.path)

    async def _tell_load(self) -> None:
        told = 0.0
        while True:
            each_used = [each.num_used_tokens / self._loaded.kv_cache_tokens for each in self._load_reader.read_all()]
            used = min(max(each_used, default=0.0), 1.0)
            if used != told:
                self._connection.send(Load(used))
                told = used
            await asyncio.sleep(_LOAD_INTERVAL_S)
