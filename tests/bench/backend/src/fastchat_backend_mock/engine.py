"""An engine whose tokens come when the request's knobs say, at next to no cost of its own.

Streams of one pace share a step clock, as in an engine that batches: a step pushes one token to each
of them. Nothing is ever pushed from within `start`, as no real engine has its answer by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Self

from fastchat_backend_mock import MockOptions
from fastchat_backend_mock.knobs import Knobs
from fastchat_backend_mock.tokens import PROMPT_TOKENS, TOKENS, stamp, whole
from fastchat_serve import (
    Capability,
    Chunk,
    EngineError,
    EngineInfo,
    EngineLoad,
    GenerateRequest,
    Handle,
    InvalidRequest,
    Sink,
    Unsupported,
    Usage,
    pull,
)

__all__ = ["MockEngine"]

DEFAULT_TOKENS = 16
"""For a request that does not say how many."""
MAX_DEBT_S = 1.0
"""A clock that is later than this gives up the steps it missed."""


class MockEngine:
    """See the module."""

    def __init__(self, options: MockOptions | None = None) -> None:
        self._whole = options is not None and options.whole
        self._streams: set[_Stream] = set()
        self._clocks: dict[tuple[int, int], _StepClock] = {}
        self._turn = 0
        self._arrived: list[_Stream] = []
        self.fatal_error: BaseException | None = None
        self.info = EngineInfo(
            context_length=1 << 20,
            capabilities=frozenset({Capability.GENERATE, Capability.TEXT_PROMPT, Capability.CHAT}),
            fingerprint="mock",
        )

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for stream in tuple(self._streams):
            stream.finish(EngineError("The engine was closed."))

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        stream = _Stream(request, sink, self._streams)
        if not self._arrived:
            self._loop.call_soon(self._admit)
        self._arrived.append(stream)
        return stream

    def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        return pull(self.start, request)

    def current_load(self) -> EngineLoad:
        return EngineLoad(running=len(self._streams))

    def _admit(self) -> None:
        """Begin with all requests that came within one turn of the loop."""
        arrived, self._arrived = self._arrived, []
        for stream in arrived:
            try:
                knobs = _accepted(stream.request)
            except InvalidRequest as error:
                stream.finish(error)
            else:
                if knobs.ttft:
                    self._loop.call_later(knobs.ttft / 1e6, self._begin, stream, knobs)
                else:
                    self._begin(stream, knobs)

    def _begin(self, stream: _Stream, knobs: Knobs) -> None:
        """The time to the first token is over."""
        if self._whole:
            stream.send(whole(knobs.size), tuple(range(stream.left)))
            return
        stream.timed = bool(knobs.ts)
        if knobs.itl and not stream.step(stamp()):
            return
        self._turn += 1
        phase = self._turn % knobs.phases
        clock = self._clocks.get((knobs.itl, phase))
        if clock is None:
            clock = self._clocks[knobs.itl, phase] = _StepClock(knobs.itl / 1e6, self._loop)
        if knobs.itl and not clock.running:  # clocks of several engines do not tick together
            self._loop.call_later(knobs.itl / 1e6 * phase / knobs.phases, clock.add, stream)
        else:
            clock.add(stream)


class _Stream:
    """One answer: a handle for the caller, stepped by its clock.

    Attributes:
        request: What was asked for.
        left: Tokens yet to come.
        timed: Tokens say when they were sent.
    """

    __slots__ = ("_aborted", "_count", "_ended", "_sink", "_streams", "left", "request", "timed")

    def __init__(self, request: GenerateRequest, sink: Sink, streams: set[_Stream]) -> None:
        self.request, self._sink, self._streams = request, sink, streams
        self._aborted = self._ended = self.timed = False
        self.left = self._count = request.sampling.max_tokens or DEFAULT_TOKENS
        streams.add(self)

    def step(self, now: str) -> bool:
        """Send one token, which is `now` or one of the varied ones; False when none is to come any more."""
        token_id = self.left % len(TOKENS)
        return self.send(now if self.timed else TOKENS[token_id], (token_id,))

    def send(self, text: str, token_ids: tuple[int, ...]) -> bool:
        """Push `text` as these tokens; False when none is to come any more."""
        if self._aborted or self._ended:
            return False
        self.left -= len(token_ids)
        if self.left:
            self._sink.push(Chunk(text=text, token_ids=token_ids))
            return True
        usage = Usage(PROMPT_TOKENS, self._count)
        self._sink.push(Chunk(text=text, token_ids=token_ids, finish_reason="length", usage=usage))
        self.finish(None)
        return False

    def abort(self) -> None:
        if not self._aborted and not self._ended:
            self._aborted = True
            asyncio.get_running_loop().call_soon(self.finish, None)

    def finish(self, error: Exception | None) -> None:
        """Let go of the request, and tell."""
        if not self._ended:
            self._ended = True
            self._streams.discard(self)
            self._sink.end(None if self._aborted else error)


class _StepClock:
    """Steps every stream once per `interval_s`, or once per turn of the loop if that is 0."""

    def __init__(self, interval_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._interval_s, self._loop = interval_s, loop
        self._streams: list[_Stream] = []
        self._next = 0.0
        self.running = False

    def add(self, stream: _Stream) -> None:
        self._streams.append(stream)
        if not self.running:
            self.running = True
            self._next = self._loop.time()
            self._schedule()

    def _schedule(self) -> None:
        if self._interval_s:
            self._next += self._interval_s
            if self._next < (now := self._loop.time()) - MAX_DEBT_S:
                self._next = now
            self._loop.call_at(self._next, self._step)
        else:
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        stepping, self._streams = self._streams, []
        now = stamp()
        goes_on = [stream for stream in stepping if stream.step(now)]
        self._streams = goes_on + self._streams  # a sink may have started another answer meanwhile
        if self._streams:
            self._schedule()
        else:
            self.running = False


def _accepted(request: GenerateRequest) -> Knobs:
    """The request's knobs. Raises `InvalidRequest` for what would change the answer's tokens."""
    if request.sampling.stop or request.echo:
        raise Unsupported("The mock engine has no stop strings and no echo.")
    return Knobs.of(request)
