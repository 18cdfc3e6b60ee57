"""The engine as the server sees it: SGLang at the other end of a socket.

Everything that takes time, tokenizers and chat templates included, runs in the host (`host.py`). Here a request is
encoded, and what comes back is handed on: one wake-up of the loop for all streams of a step.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any, Self, TypeVar, cast

import anyio
import anyio.to_thread

from fastchat_backend_sglang.faults import as_error
from fastchat_backend_sglang.link import (
    Abort,
    Answer,
    Broken,
    Connection,
    Detokenize,
    Embed,
    Ended,
    FromHost,
    Generate,
    Load,
    Open,
    Opened,
    Piece,
    Progress,
    Question,
    Refused,
    Render,
    Tokenize,
)
from fastchat_backend_sglang.options import SglangOptions
from fastchat_backend_sglang.process import HostProcess
from fastchat_serve import (
    ChatPrompt,
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
    StartupError,
    TextPrompt,
    Unavailable,
    pull,
)

__all__ = ["SglangEngine"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LEAVE_S = 5.0
"""How long the host may take to leave by itself before it is killed."""


class _Stream:
    """One answer; also its handle."""

    def __init__(self, sink: Sink, abort: Callable[[], None]) -> None:
        self.sink, self.began = sink, False
        self._abort = abort
        self._aborted = self._ended = False

    def abort(self) -> None:
        if not (self._aborted or self._ended):
            self._aborted = True
            self._abort()

    def push(self, piece: Piece) -> None:
        self.began = True
        if not self._aborted:
            self.sink.push(piece.chunk)

    def end(self, error: ServeError | None) -> None:
        self._ended = True
        self.sink.end(None if self._aborted else error)


class SglangEngine:
    """A model in SGLang; a `PushEngine`.

    Attributes:
        fatal_error: Why the host, or a part of SGLang, is gone; None while all is well.
    """

    def __init__(self, setup: EngineSetup) -> None:
        if not isinstance(setup.options, SglangOptions):
            raise TypeError(f"options must be SglangOptions, not {type(setup.options).__name__}")
        self._setup, self._options = setup, setup.options
        self.fatal_error: BaseException | None = None
        self._info: EngineInfo | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self.fatal_error = None
        self._keys = itertools.count()
        self._streams: dict[int, _Stream] = {}
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._kv_used_fraction = 0.0
        self._opened: asyncio.Future[EngineInfo] = self._loop.create_future()
        self._closing = False
        self._setup.progress("starting SGLang")
        self._process = await anyio.to_thread.run_sync(HostProcess)
        try:
            self._connection = await Connection.over(self._process.channel, FromHost, self._on_message, self._on_lost)
            self._connection.send(Open(self._setup.model, self._options))
            self._info = await self._opened
        except BaseException as error:
            self._closing = True
            await self._end_process(_LEAVE_S if isinstance(error, StartupError) else 0.0)
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._closing = True
        self._connection.close()
        await self._end_process(_LEAVE_S)
        self._end_all(Unavailable("The model was unloaded."))
        self._info = None

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise RuntimeError("the engine is not open")
        return self._info

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        key = next(self._keys)
        stream = _Stream(sink, lambda: self._abort(key))
        try:
            self._check_alive()
            self._send(Generate(key, request))
        except ServeError as error:
            self._loop.call_soon(stream.end, error)
        else:
            self._streams[key] = stream
        return stream

    def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[Any, None]:
        return pull(self.start, request)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        return cast(Embeddings, await self._ask(Embed(next(self._keys), request)))

    async def tokenize(self, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]:
        return cast("tuple[int, ...]", await self._ask(Tokenize(next(self._keys), prompt)))

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        return cast(str, await self._ask(Detokenize(next(self._keys), token_ids)))

    async def render(self, prompt: ChatPrompt) -> str:
        return cast(str, await self._ask(Render(next(self._keys), prompt)))

    def current_load(self) -> EngineLoad:
        """A stream waits until its first piece is there."""
        running = sum(stream.began for stream in self._streams.values())
        return EngineLoad(running, len(self._streams) - running, self._kv_used_fraction)

    # -------------------------------------------------------------------------------- to the host

    async def _ask(self, question: Question) -> object:
        self._check_alive()
        self._send(question)
        answer = self._questions[question.key] = self._loop.create_future()
        try:
            return await answer
        finally:
            del self._questions[question.key]
            if answer.cancelled():
                self._abort(question.key)

    def _send(self, message: Generate | Question) -> None:
        """Raises `InvalidRequest` for what no message can hold."""
        try:
            self._connection.send(message)
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"A text has a lone surrogate at position {error.start}.") from error
        except OverflowError as error:
            raise InvalidRequest("A number is out of range: whole numbers have at most 64 bits.") from error

    def _abort(self, key: int) -> None:
        if self.fatal_error is None:
            self._connection.send(Abort(key))

    # ------------------------------------------------------------------------------ from the host

    def _on_message(self, message: FromHost) -> None:
        match message:
            case Piece():
                if (stream := self._streams.get(message.key)) is not None:
                    stream.push(message)
            case Ended():
                self._on_ended(message.key, None if message.fault is None else as_error(message.fault))
            case Answer():
                if (answer := self._questions.get(message.key)) is not None and not answer.done():
                    answer.set_result(message.value)
            case Load():
                self._kv_used_fraction = message.kv_used_fraction
            case Progress():
                self._setup.progress(message.stage)
            case Opened():
                self._set_opened(message.info)
            case Refused():
                self._set_opened(StartupError(message.problem))
            case Broken():
                self._die(RuntimeError(message.reason))

    def _on_ended(self, key: int, error: ServeError | None) -> None:
        if (stream := self._streams.pop(key, None)) is not None:
            stream.end(error)
        elif (answer := self._questions.get(key)) is not None and not answer.done():
            answer.set_exception(error or EngineError("The engine gave no answer."))

    def _on_lost(self) -> None:
        if not self._closing:
            self._die(RuntimeError("SGLang's process has ended"))

    def _die(self, reason: Exception) -> None:
        if self.fatal_error is not None:
            return
        logger.critical("SGLang is gone: %s", reason)
        self.fatal_error = reason
        self._set_opened(StartupError(f"{reason} while it was loading the model; see what it wrote above"))
        self._end_all(EngineError("The engine has stopped working."))

    def _set_opened(self, outcome: EngineInfo | StartupError) -> None:
        if self._opened.done():
            return
        if isinstance(outcome, EngineInfo):
            self._opened.set_result(outcome)
        else:
            self._opened.set_exception(outcome)

    def _end_all(self, error: ServeError) -> None:
        while self._streams:
            self._streams.popitem()[1].end(error)
        for answer in self._questions.values():
            if not answer.done():
                answer.set_exception(error)

    def _check_alive(self) -> None:
        if self._closing or self.fatal_error is not None:
            raise EngineError("The engine has stopped working.")

    async def _end_process(self, patience_s: float) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._process.end, patience_s)
