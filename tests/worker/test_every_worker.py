"""What every worker does, wherever its engine runs: one contract for the loop, a link and a process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import pytest

from fastchat_serve import ChatPrompt, EmbedRequest, Message, TextPrompt
from fastchat_serve.errors import EngineError, Overloaded, ServeError, Unavailable
from fastchat_serve.worker.base import Worker, WorkerState
from tests.sinks import Remembering, a_request
from tests.worker.every_worker import KINDS, until

pytestmark = pytest.mark.anyio

Running = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def running(request: pytest.FixtureRequest) -> Running:
    """``async with running(concurrency=1, delay_ms=5) as worker``: of an echo engine with these options."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=[KINDS["local"], KINDS["process"]], ids=["local", "process"])
def owning(request: pytest.FixtureRequest) -> Running:
    """The same, of a worker whose life is ours to end."""
    return request.param  # type: ignore[no-any-return]


def begin(worker: Worker, prompt: str = "to be or not", **request: Any) -> Remembering:
    """An answer, or its refusal: which one worker raises, and another tells to the sink."""
    sink = Remembering()
    try:
        worker.start(a_request(prompt, **request), sink)
    except ServeError as error:
        sink.end(error)
    return sink


async def test_an_answer_arrives_whole_with_its_ids_and_its_count(running: Running) -> None:
    async with running(split="byte") as worker:
        sink = await begin(worker, "é😀 to be").ended()
    assert sink.ends == [None]
    assert sink.text == "é😀 to be"
    ids = [token for chunk in sink.chunks for token in chunk.token_ids]
    last = sink.chunks[-1]
    assert last.usage is not None
    assert last.finish_reason == "stop"
    assert last.usage.completion_tokens == len(ids)


async def test_logprobs_and_the_prompt_arrive_as_the_engine_gave_them(running: Running) -> None:
    asked: dict[str, Any] = {"logprobs": 2, "prompt_logprobs": 1, "echo": True}
    async with KINDS["local"](split="byte") as here, running(split="byte") as worker:
        expected = await begin(here, "abc", **asked).ended()
        got = await begin(worker, "abc", **asked).ended()
    assert [chunk.logprobs for chunk in got.chunks if chunk.logprobs] == [
        chunk.logprobs for chunk in expected.chunks if chunk.logprobs
    ]
    assert got.chunks[0].prompt == expected.chunks[0].prompt


async def test_it_says_what_its_engine_is_and_how_busy(running: Running) -> None:
    async with running(concurrency=1, queue=1, loop=True, delay_ms=5, context_length=1000) as worker:
        assert worker.state is WorkerState.READY
        assert worker.info.context_length == 1000
        assert (worker.queue_length, worker.full) == (0, False)
        first = begin(worker)
        second = begin(worker)
        assert (worker.queue_length, worker.full) == (2, True)
        await first.has(1)
        load = worker.load()
        assert (load.running, load.waiting, load.slots, load.queue_limit) == (1, 1, 1, 1)
        assert not second.chunks


async def test_who_does_not_fit_is_told_when_to_come_back(running: Running) -> None:
    async with running(concurrency=1, queue=0, loop=True, delay_ms=5) as worker:
        first = await begin(worker).has(1)
        second = await begin(worker).ended()
        assert isinstance(second.error, Overloaded)
        assert second.error.retry_after_s
        assert not first.ends


async def test_an_abort_frees_the_slot_and_is_no_error(running: Running) -> None:
    async with running(concurrency=1, loop=True, delay_ms=1) as worker:
        sink = Remembering()
        handle = worker.start(a_request(), sink)
        await sink.has(2)
        handle.abort()
        handle.abort()
        await sink.ended()
        assert sink.ends == [None]
        assert worker.queue_length == 0
        seen = len(sink.chunks)
        assert (await begin(worker, max_tokens=2).ended()).ends == [None]
        assert len(sink.chunks) == seen


async def test_a_waiting_request_can_leave_its_queue(running: Running) -> None:
    async with running(concurrency=1, loop=True, delay_ms=1) as worker:
        first = await begin(worker).has(1)
        sink = Remembering()
        handle = worker.start(a_request(), sink)
        handle.abort()
        await sink.ended()
        assert (sink.chunks, sink.ends) == ([], [None])
        assert worker.queue_length == 1
        assert not first.ends


async def test_an_engine_that_fails_ends_that_answer_with_its_error(running: Running) -> None:
    async with running(fail_at=2) as worker:
        sink = await begin(worker).ended()
        assert sink.text == "to be"
        assert isinstance(sink.error, EngineError)
        assert worker.state is WorkerState.READY
        await until(lambda: worker.queue_length == 0)


async def test_many_streams_at_once_keep_to_themselves(running: Running) -> None:
    prompts = [" ".join(f"{number}.{word}" for word in range(20)) for number in range(40)]
    async with running(concurrency=40, queue=0) as worker:
        sinks = [begin(worker, prompt) for prompt in prompts]
        for sink, prompt in zip(sinks, prompts, strict=True):
            assert (await sink.ended()).text == prompt


async def test_a_sink_that_fails_hurts_nobody_else(running: Running) -> None:
    class Failing(Remembering):
        def push(self, chunk: object) -> None:
            raise RuntimeError("no")

    async with running() as worker:
        bad = Failing()
        worker.start(a_request(), bad)
        good = begin(worker)
        assert (await good.ended()).text == "to be or not"
        assert isinstance((await bad.ended()).error, EngineError)
        await until(lambda: worker.queue_length == 0)


async def test_it_embeds_and_tokenizes(running: Running) -> None:
    async with KINDS["local"](split="byte") as here, running(split="byte") as worker:
        request = EmbedRequest(id="e", inputs=(TextPrompt("a"), TextPrompt("b")))
        assert await worker.embed(request) == await here.embed(request)
        chat = ChatPrompt((Message(role="user", content="hi"),))
        for prompt in (TextPrompt("hé"), chat):
            ids = await worker.tokenize(prompt)
            assert ids == await here.tokenize(prompt)
        assert await worker.detokenize(ids) == await here.detokenize(ids)


async def test_an_embedding_that_nobody_waits_for_takes_no_place(running: Running) -> None:
    async with running(concurrency=1, loop=True, delay_ms=1) as worker:
        first = await begin(worker).has(1)
        with anyio.move_on_after(0.05) as patience:
            await worker.embed(EmbedRequest(id="e", inputs=(TextPrompt("a"),)))
        assert patience.cancelled_caught
        await until(lambda: worker.queue_length == 1)
        assert not first.ends


async def test_what_the_engine_refuses_is_refused_alike(running: Running) -> None:
    async with KINDS["local"](context_length=4) as here, running(context_length=4) as worker:
        long = " ".join("word" for _ in range(9))
        expected, got = await begin(here, long).ended(), await begin(worker, long).ended()
    assert type(got.error) is type(expected.error)
    assert str(got.error) == str(expected.error)


async def test_drain_finishes_what_was_accepted_and_takes_no_more(owning: Running) -> None:
    async with owning(concurrency=1, delay_ms=2) as worker:
        accepted = [begin(worker), begin(worker)]
        with anyio.fail_after(10):
            await worker.drain()
        assert [sink.text for sink in accepted] == ["to be or not"] * 2
        late = await begin(worker).ended()
        assert isinstance(late.error, Unavailable)


async def test_stopping_tells_everybody_under_way(owning: Running) -> None:
    async with owning(concurrency=1, loop=True, delay_ms=1) as worker:
        sinks = [begin(worker), begin(worker)]
        await sinks[0].has(1)
        worker.stop()
        for sink in sinks:
            assert isinstance((await sink.ended()).error, Unavailable)
        await until(lambda: worker.state is WorkerState.STOPPED)


async def test_expelling_ends_all_with_the_reason_that_is_given(running: Running) -> None:
    async with running(concurrency=1, loop=True, delay_ms=1) as worker:
        sinks = [begin(worker), begin(worker)]
        await sinks[0].has(1)
        worker.expel(Unavailable("Go away.", code="shutting_down"))
        for sink in sinks:
            assert str((await sink.ended()).error) == "Go away."
        await until(lambda: worker.queue_length == 0)
        await asyncio.sleep(0)
        assert [len(sink.ends) for sink in sinks] == [1, 1]
