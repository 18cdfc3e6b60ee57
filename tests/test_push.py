"""Either form of a stream from the other, and what each promises when things go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import anyio
import pytest

from fastchat_serve import Chunk, EngineError, GenerateRequest, Handle, Sink, Usage, pull, push
from fastchat_serve.engines.echo import EchoEngine, EchoOptions
from fastchat_serve.push import Pusher
from tests.sinks import Remembering, a_request

pytestmark = pytest.mark.anyio

LAST = Chunk(text="!", finish_reason="stop", usage=Usage(1, 1))
Generate = Callable[[GenerateRequest], AsyncGenerator[Chunk, None]]


class PullOnly(EchoEngine):
    """An engine that has nothing but `generate_stream`."""

    start = None  # type: ignore[assignment]

    def __init__(self, generate: Generate) -> None:
        super().__init__()
        self._generate = generate

    def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        return self._generate(request)


@asynccontextmanager
async def pushing(generate: Generate) -> AsyncIterator[Pusher]:
    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(10):
            yield Pusher(PullOnly(generate), tasks)
        tasks.cancel_scope.cancel()


# ---------------------------------------------------------------------------------------------- pull


async def test_pull_gives_the_chunks_and_then_the_error() -> None:
    stream = pull(EchoEngine(EchoOptions(fail_at=2)).start, a_request())

    assert [(await anext(stream)).text, (await anext(stream)).text] == ["to", " be"]
    with pytest.raises(EngineError, match="told to fail"):
        await anext(stream)


async def test_pull_keeps_what_arrives_while_nobody_reads() -> None:
    sinks: list[Sink] = []

    class NoHandle:
        def abort(self) -> None:
            pass

    def start(request: GenerateRequest, sink: Sink) -> Handle:
        sinks.append(sink)
        for _ in range(3):
            sink.push(Chunk(text="x"))
        sink.push(LAST)
        sink.end(None)
        return NoHandle()

    assert "".join([chunk.text async for chunk in pull(start, a_request())]) == "xxx!"


async def test_closing_a_pulled_stream_waits_until_the_engine_let_go() -> None:
    order = []

    class SlowToLetGo:
        def __init__(self, sink: Sink) -> None:
            self.sink = sink

        def abort(self) -> None:
            order.append("abort")
            asyncio.get_running_loop().call_later(0.01, self.let_go)

        def let_go(self) -> None:
            order.append("let go")
            self.sink.push(Chunk(text="too late"))
            self.sink.end(None)

    def start(request: GenerateRequest, sink: Sink) -> Handle:
        sink.push(Chunk(text="x"))
        return SlowToLetGo(sink)

    chunks = pull(start, a_request())
    await anext(chunks)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await chunks.aclose()  # also when the caller is being cancelled

    assert order == ["abort", "let go"]


async def test_closing_a_pulled_stream_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(push, "LET_GO_S", 0.01)
    async with EchoEngine(EchoOptions(leak=True)) as engine:
        with anyio.fail_after(5):
            async with aclosing(pull(engine.start, a_request(id="kept"))) as chunks:
                await anext(chunks)

    assert "kept" in caplog.text


# -------------------------------------------------------------------------------------------- Pusher


async def test_an_engine_that_pushes_is_started_without_a_task() -> None:
    async with anyio.create_task_group() as tasks:
        sink = Remembering()
        before = len(asyncio.all_tasks())
        Pusher(EchoEngine(), tasks).start(a_request(), sink)

        assert len(asyncio.all_tasks()) == before
        assert (await sink.ended()).text == "to be or not"


async def test_an_engine_whose_start_is_something_else_is_pulled() -> None:
    class Opens(EchoEngine):
        async def start(self, host: str = "", port: int = 0) -> None:  # type: ignore[override]
            raise AssertionError("nobody asked for this")

        def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
            return pull(lambda request, sink: EchoEngine.start(self, request, sink), request)

    async with anyio.create_task_group() as tasks:
        sink = Remembering()
        Pusher(Opens(), tasks).start(a_request(), sink)

        assert (await sink.ended()).text == "to be or not"


async def test_a_generator_is_pushed_chunk_by_chunk_and_ended_once() -> None:
    async def generate(request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        yield Chunk(text="a")
        await anyio.lowlevel.checkpoint()
        yield LAST

    async with pushing(generate) as pusher:
        sink = Remembering()
        pusher.start(a_request(), sink)
        await sink.ended()

    assert (sink.text, sink.ends) == ("a!", [None])


@pytest.mark.parametrize("at", [0, 1, 3])
async def test_what_a_generator_raises_ends_the_sink(at: int) -> None:
    async def generate(request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        for _ in range(at):
            yield Chunk(text="x")
        raise ZeroDivisionError

    async with pushing(generate) as pusher:
        sink = Remembering()
        pusher.start(a_request(), sink)
        await sink.ended()

    assert sink.text == "x" * at
    assert isinstance(sink.error, ZeroDivisionError)


async def test_aborting_cancels_the_generator_and_its_cleanup_may_wait() -> None:
    cleaned_up = []

    async def generate(request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        try:
            yield Chunk(text="a")
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            cleaned_up.append(request.id)

    async with pushing(generate) as pusher:
        sink = Remembering()
        handle = pusher.start(a_request(), sink)
        await sink.has(1)
        handle.abort()
        handle.abort()
        await sink.ended()

    assert (cleaned_up, sink.ends) == (["request"], [None])


async def test_a_generator_that_is_aborted_between_chunks_is_closed_and_may_wait_in_finally() -> None:
    cleaned_up = []
    handles: list[Handle] = []

    class AbortsAtOnce(Remembering):
        def push(self, chunk: Chunk) -> None:
            super().push(chunk)
            handles[0].abort()

    async def generate(request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        try:
            while True:
                yield Chunk(text="a")  # never waits, so no cancellation could arrive
        finally:
            await anyio.lowlevel.checkpoint()
            cleaned_up.append(request.id)

    async with pushing(generate) as pusher:
        sink = AbortsAtOnce()
        handles.append(pusher.start(a_request(), sink))
        await sink.ended()

    assert (sink.text, cleaned_up, sink.ends) == ("a", ["request"], [None])


async def test_a_generator_that_goes_on_when_cancelled_is_not_heard_any_more() -> None:
    async def generate(request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        try:
            yield Chunk(text="a")
            await anyio.sleep_forever()
        except BaseException:
            yield Chunk(text="stubborn")
        yield Chunk(text="still here")

    async with pushing(generate) as pusher:
        sink = Remembering()
        handle = pusher.start(a_request(), sink)
        await sink.has(1)
        handle.abort()
        await sink.ended()

    assert (sink.text, sink.ends) == ("a", [None])


async def test_a_request_that_is_aborted_before_its_task_runs_never_reaches_the_engine() -> None:
    started = []

    async def generate(request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        started.append(request.id)
        yield LAST

    async with pushing(generate) as pusher:
        sink = Remembering()
        pusher.start(a_request(), sink).abort()
        await sink.ended()

    assert (started, sink.ends) == ([], [None])


async def test_a_cancellation_that_an_engine_leaks_ends_one_answer_and_not_the_others() -> None:
    async def generate(request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        yield Chunk(text="a")
        if request.id == "bad":
            raise asyncio.CancelledError
        await anyio.lowlevel.checkpoint()
        yield LAST

    async with pushing(generate) as pusher:
        bad, good = Remembering(), Remembering()
        pusher.start(a_request(id="bad"), bad)
        pusher.start(a_request(id="good"), good)
        await bad.ended()
        await good.ended()

    assert isinstance(bad.error, EngineError)
    assert (good.text, good.ends) == ("a!", [None])


async def test_answers_under_way_are_told_when_the_tasks_are_cancelled() -> None:
    async def generate(request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        yield Chunk(text="a")
        await anyio.sleep_forever()

    sink = Remembering()
    async with pushing(generate) as pusher:
        pusher.start(a_request(), sink)
        await sink.has(1)

    assert isinstance(sink.error, EngineError)
