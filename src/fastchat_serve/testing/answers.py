"""What an engine said: one answer with all its chunks, read in either form of the stream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing

import anyio
import anyio.lowlevel
from msgspec.structs import replace

from fastchat_serve.engine import (
    Chunk,
    Engine,
    FinishReason,
    GenerateRequest,
    Handle,
    PromptEcho,
    SamplingParams,
    Sink,
    TokenLogprob,
    ToolCall,
    Usage,
)

__all__ = ["Answer", "SinkOfAnswer", "read_push", "read_stream", "vary"]


class Answer:
    """One answer.

    Attributes:
        request: What was asked.
        chunks: All that came, in order.
        error: What ended the answer instead of a finish.
    """

    def __init__(self, request: GenerateRequest, chunks: Iterable[Chunk] = ()) -> None:
        self.request = request
        self.chunks = list(chunks)
        self.error: Exception | None = None

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token_id for chunk in self.chunks for token_id in chunk.token_ids)

    @property
    def ids(self) -> list[int]:
        """`token_ids` as models and tokenizers take them."""
        return list(self.token_ids)

    @property
    def logprobs(self) -> list[TokenLogprob]:
        return [token for chunk in self.chunks for token in chunk.logprobs or ()]

    @property
    def tool_calls(self) -> list[ToolCall]:
        return [call for chunk in self.chunks for call in chunk.tool_calls]

    @property
    def prompt(self) -> PromptEcho:
        """The echo, which is in the first chunk."""
        assert self.chunks, "there is no chunk"
        assert self.chunks[0].prompt is not None, "the first chunk does not echo the prompt"
        return self.chunks[0].prompt

    @property
    def last(self) -> Chunk:
        assert self.chunks, "there is no chunk"
        return self.chunks[-1]

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.last.finish_reason

    @property
    def stop_match(self) -> str | int | None:
        return self.last.stop_match

    @property
    def usage(self) -> Usage:
        assert self.last.usage is not None, "the last chunk has no usage"
        return self.last.usage

    @property
    def cuts(self) -> Iterator[int]:
        """Where chunks begin within the text, but for its ends."""
        offset = 0
        for chunk in self.chunks[:-1]:
            offset += len(chunk.text)
            if 0 < offset < len(self.text):
                yield offset

    def whole(self) -> Answer:
        """This answer, if it has come to its end as it ought to; raises what ended it otherwise."""
        if self.error is not None:
            raise self.error
        assert self.last.finish_reason is not None, "the answer ended without a finish reason"
        return self


class SinkOfAnswer:
    """A sink that keeps an answer, and notes how it was called.

    Attributes:
        answer: What came.
        ends: The argument of every call of `end`.
        faults: Calls that a sink must not get.
        handle: What the engine returned for it.
    """

    def __init__(self, request: GenerateRequest, on_push: Callable[[Chunk], None] | None = None) -> None:
        self.answer = Answer(request)
        self.ends: list[Exception | None] = []
        self.faults: list[str] = []
        self.handle: Handle | None = None
        self._aborted = False
        self._thread = threading.current_thread()
        self._on_push = on_push
        self._news = anyio.Event()

    def push(self, chunk: Chunk) -> None:
        self._note("push")
        if self._aborted:
            self.faults.append("a chunk came after the abort")
        self.answer.chunks.append(chunk)
        if self._on_push is not None:
            self._on_push(chunk)
        self._tell()

    def end(self, error: Exception | None) -> None:
        self._note("end")
        self.ends.append(error)
        self.answer.error = error
        self._tell()

    def abort(self) -> None:
        """As a caller who has gone."""
        assert self.handle is not None
        self._aborted = True
        self.handle.abort()

    async def has(self, count: int) -> None:
        """Return once there are so many chunks, or the end."""
        while len(self.answer.chunks) < count and not self.ends:
            await self._news.wait()

    async def ended(self) -> Answer:
        """Return once `end` was called."""
        while not self.ends:
            await self._news.wait()
        return self.answer

    def _note(self, call: str) -> None:
        if threading.current_thread() is not self._thread:
            self.faults.append(f"`{call}` was called on the thread {threading.current_thread().name!r}")
        if self.ends:
            self.faults.append(f"`{call}` was called after `end`")

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()


async def read_stream(engine: Engine, request: GenerateRequest) -> Answer:
    """The answer as the generator gives it, an error included."""
    answer = Answer(request)
    try:
        async with aclosing(engine.generate_stream(request)) as chunks:
            async for chunk in chunks:
                answer.chunks.append(chunk)
    except Exception as error:  # the boundary to the engine under test
        answer.error = error
    return answer


async def read_push(start: Callable[[GenerateRequest, Sink], Handle], request: GenerateRequest) -> SinkOfAnswer:
    """The answer as a worker gets it. Being cancelled aborts it."""
    sink = SinkOfAnswer(request)
    sink.handle = start(request, sink)
    try:
        await sink.ended()
    finally:
        if not sink.ends:
            sink.abort()
    await anyio.lowlevel.checkpoint()  # a call too many would come about now
    return sink


def vary(request: GenerateRequest, **changes: object) -> GenerateRequest:
    """`request` with other fields; those of `SamplingParams` can be given as well."""
    sampling = {name: changes.pop(name) for name in list(changes) if name in SamplingParams.__struct_fields__}
    return replace(request, sampling=replace(request.sampling, **sampling), **changes)
