"""Answers of an engine that steps in a thread of its own."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import anyio
import anyio.lowlevel
import pytest

from fastchat_serve import (
    ChatPrompt,
    ContextOverflow,
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    JsonObject,
    Message,
    PushEngine,
    TextPrompt,
    Unsupported,
)
from tests.sinks import Remembering, a_request
from tests.stepping.parrot import CONTEXT, END, Gate, Loader, engine_with

pytestmark = pytest.mark.anyio


async def said(engine: PushEngine, prompt: str, **asked: object) -> str:
    sink = Remembering()
    engine.start(a_request(prompt, **asked), sink)  # type: ignore[arg-type]
    await sink.ended()
    assert sink.ends == [None]
    return sink.text


async def test_answers_come_in_either_form_of_the_stream() -> None:
    async with engine_with(Loader()) as engine:
        pulled = [chunk async for chunk in engine.generate_stream(a_request("häh?"))]

        assert isinstance(engine, PushEngine)
        assert "".join(chunk.text for chunk in pulled) == await said(engine, "häh?") == "häh?"
        assert pulled[-1].usage is not None
        assert (pulled[-1].usage.prompt_tokens, pulled[-1].usage.completion_tokens) == (5, 6)
        assert (pulled[-1].finish_reason, pulled[-1].stop_match) == ("stop", END)
        assert engine.current_load().running == engine.current_load().waiting == 0


async def test_limits_stops_and_resumption_are_kept() -> None:
    async with engine_with(Loader()) as engine:
        assert await said(engine, "to be or not", max_tokens=5) == "to be"
        assert await said(engine, "to be or not", stop=("be",)) == "to "
        assert await said(engine, "abc", resume_token_ids=tuple(b"ab")) == "c"
        assert await said(engine, "ab", ignore_eos=True, max_tokens=5) == "ababa"


async def test_what_is_wrong_with_a_request_ends_it_before_the_first_chunk() -> None:
    async with engine_with(Loader()) as engine:
        for request, error in (
            (a_request("x", max_tokens=CONTEXT), ContextOverflow),
            (a_request("x", adapter="b"), InvalidRequest),
            (a_request("x", constraint=JsonObject()), Unsupported),
        ):
            sink = Remembering()
            engine.start(request, sink)
            await sink.ended()
            assert isinstance(sink.error, error)
            assert not sink.chunks
        assert await said(engine, "x", adapter="a") == "x"
        with pytest.raises(Unsupported):
            await engine.render(ChatPrompt((Message(role="user", content="x"),)))


async def test_a_failure_while_preparing_is_told_without_internals() -> None:
    loader, sink = Loader(), Remembering()

    def fail(id: str) -> None:
        raise ValueError("/secret/path")

    loader.on_prepare = fail
    async with engine_with(loader) as engine:
        engine.start(a_request(), sink)
        await sink.ended()
    assert isinstance(sink.error, EngineError)
    assert "secret" not in str(sink.error)


async def test_who_is_served_first_is_a_matter_of_priority_then_of_arrival() -> None:
    loader, gate, ended = Loader(rows=1), Gate(), list[str]()
    loader.on_step = gate
    async with engine_with(loader) as engine, anyio.create_task_group() as tasks:

        async def ask(id: str, priority: int) -> None:
            await said(engine, "a", id=id, priority=priority)
            ended.append(id)

        tasks.start_soon(ask, "first", 0)
        await asyncio.wrap_future(gate.reached)
        for id, priority in (("late", 1), ("next", 0), ("urgent", -1), ("last", 1)):
            tasks.start_soon(ask, id, priority)
            await anyio.lowlevel.checkpoint()
        await engine.tokenize(TextPrompt("behind them in the queue of the preparing thread"))
        gate.open()
    assert sorted(ended[:2]) == ["first", "urgent"]
    assert ended[2:] == ["next", "late", "last"]


async def test_a_request_is_aborted_before_anybody_begins_to_prepare_it() -> None:
    loader, gate = Loader(), Gate()
    loader.on_prepare = gate
    async with engine_with(loader) as engine:
        first, second = Remembering(), Remembering()
        engine.start(a_request("a", id="first"), first)
        await asyncio.wrap_future(gate.reached)
        engine.start(a_request("b", id="second"), second).abort()
        assert not second.ends, "the handle comes first"
        await second.ended()
        gate.open()
        await first.ended()
    assert (second.ends, second.chunks, first.text) == ([None], [], "a")


async def test_a_request_that_is_aborted_while_it_is_prepared_draws_nothing() -> None:
    loader, gate, sink = Loader(), Gate(), Remembering()
    loader.on_prepare = gate
    async with engine_with(loader) as engine:
        handle = engine.start(a_request("a"), sink)
        await asyncio.wrap_future(gate.reached)
        handle.abort()
        gate.open()
        await sink.ended()
    assert (sink.ends, sink.chunks) == ([None], [])


async def test_an_answer_that_is_aborted_in_the_batch_ends_once_and_says_no_more() -> None:
    async with engine_with(Loader()) as engine:
        sink = Remembering()
        handle = engine.start(a_request("a", ignore_eos=True), sink)
        await sink.has(2)
        handle.abort()
        handle.abort()
        seen = len(sink.chunks)
        await sink.ended()
        handle.abort()
        assert (sink.ends, len(sink.chunks)) == ([None], seen)
        async with aclosing(engine.generate_stream(a_request("a", ignore_eos=True))) as stream:
            await anext(stream)
        assert engine.current_load().running == 0


async def test_an_answer_ends_at_its_deadline() -> None:
    async with engine_with(Loader()) as engine:
        sink = Remembering()
        engine.start(a_request("a", timeout_s=0.0), sink)
        await sink.ended()
    assert isinstance(sink.error, DeadlineExceeded)


async def test_a_step_wakes_the_loop_once_for_all_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    loader, posted, steps = Loader(rows=8), 0, 0
    loop = asyncio.get_running_loop()
    post = loop.call_soon_threadsafe

    def counted(callback, *args, **settings):  # type: ignore[no-untyped-def]
        nonlocal posted
        posted += getattr(callback, "__name__", "") == "_on_news"
        return post(callback, *args, **settings)

    def step() -> None:
        nonlocal steps
        steps += 1

    loader.on_step = step
    async with engine_with(loader) as engine:
        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(said, engine, f"number {number}")
    assert posted <= steps
