"""Streams that are given up, engines that fail, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from llamacpp_answers import Opened, RecordingSink, answer, asking, saying, until

from fastchat_backend_llamacpp.native import Batch, Context, DecodeFailed
from fastchat_backend_llamacpp.sampling import Sampler
from fastchat_serve import EmbedRequest, EngineError, OutOfMemory, TextPrompt, Unavailable
from fastchat_serve.text import Prompts

pytestmark = pytest.mark.anyio

ENDLESS = asking(max_tokens=None, ignore_eos=True)


async def test_after_abort_nothing_is_pushed_and_the_end_comes_once(opened: Opened) -> None:
    async with opened() as engine:
        sink = RecordingSink()
        handle = engine.start(ENDLESS, sink)
        await until(lambda: len(sink.chunks) >= 3)
        handle.abort()
        handle.abort()
        seen = len(sink.chunks)
        await until(lambda: bool(sink.ends))
        assert len(sink.chunks) == seen
        await answer(engine, asking())
        assert sink.ends == [None]
        assert engine.current_load().running == 0


async def test_a_request_can_be_aborted_before_it_is_prepared(opened: Opened) -> None:
    async with opened() as engine:
        sinks = [RecordingSink() for _ in range(20)]
        for sink in sinks:
            engine.start(asking(TextPrompt("word " * 200)), sink).abort()
        await until(lambda: all(sink.ends for sink in sinks))
        assert [sink.ends for sink in sinks] == [[None]] * 20
        assert not any(sink.chunks for sink in sinks)


async def test_closing_the_generator_frees_its_place(opened: Opened) -> None:
    async with opened(max_batch=1) as engine:
        for index in range(6):
            async with aclosing(engine.generate_stream(ENDLESS)) as stream:
                for _ in range(index):
                    await anext(stream)
        assert (await answer(engine, asking())).ids
        assert engine.current_load().running == 0


async def test_a_long_prompt_can_be_given_up_while_it_is_read(opened: Opened) -> None:
    async with opened(prefill_tokens=16, max_batch=2) as engine:
        sink = RecordingSink()
        handle = engine.start(asking([5] * 2000), sink)
        await until(lambda: engine.current_load().kv_used_fraction > 0)
        handle.abort()
        await until(lambda: bool(sink.ends))
        assert (sink.ends, sink.chunks) == ([None], [])


async def test_answers_under_way_go_on_while_a_long_prompt_is_read(opened: Opened) -> None:
    async with opened(prefill_tokens=16) as engine, aclosing(engine.generate_stream(ENDLESS)) as stream:
        await anext(stream)
        sink = RecordingSink()
        engine.start(asking([5] * 1500, max_tokens=1), sink)
        before = 0
        while not sink.ends:
            await anext(stream)
            before += 1
        assert before > 10


async def test_the_next_turn_of_a_conversation_is_found_in_the_cache_by_its_own_client(opened: Opened) -> None:
    async def cached(tokens: list[int], tenant: str) -> tuple[list[int], int]:
        said = await answer(engine, asking(tokens, tenant=tenant, ignore_eos=True))
        assert said.last.usage is not None
        return said.ids, said.last.usage.cached_tokens

    async with opened() as engine:
        ids, _ = await cached([5] * 100, "me")
        assert (await cached([5] * 100 + ids, "me"))[1] == 107
        assert (await cached([5] * 100 + ids, "you"))[1] == 0


async def test_the_answer_is_the_same_from_the_cache(opened: Opened) -> None:
    async with opened() as engine:
        prompts = [saying("Hello!"), saying("Hello! Who are you?"), saying("Hello!")]
        cached = [(await answer(engine, asking(prompt, max_tokens=30))).ids for prompt in prompts]
    async with opened(prefix_cache=False) as engine:
        fresh = [(await answer(engine, asking(prompt, max_tokens=30))).ids for prompt in prompts]
    assert cached == fresh


async def test_a_thread_that_dies_ends_everything_and_says_so(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(embeddings=True) as engine:
        sinks = [RecordingSink() for _ in range(3)]
        for sink in sinks:
            engine.start(ENDLESS, sink)
        await until(lambda: all(sink.chunks for sink in sinks))

        def fail(self: Context, batch: Batch) -> None:
            raise DecodeFailed(-3)

        monkeypatch.setattr(Context, "decode", fail)
        await until(lambda: engine.fatal_error is not None)
        assert [type(sink.ends[0]) for sink in sinks] == [EngineError] * 3
        with pytest.raises(EngineError, match="stopped working"):
            await answer(engine, asking())
        with pytest.raises(EngineError, match="stopped working"):
            await engine.embed(EmbedRequest(id="e", inputs=(TextPrompt("text"),)))
    async with opened() as engine:
        monkeypatch.undo()
        assert (await answer(engine, asking())).ids


async def test_a_failure_of_one_answer_ends_it_alone(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Sampler.draw

    def failing(self: Sampler, *args: object, **settings: object) -> int | None:
        if self._params.seed == 13:
            raise RuntimeError("secret")
        return draw(self, *args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(Sampler, "draw", failing)
    async with opened() as engine, asyncio.TaskGroup() as tasks:
        others = [tasks.create_task(answer(engine, asking(ignore_eos=True))) for _ in range(3)]
        with pytest.raises(EngineError) as caught:
            await answer(engine, asking(seed=13))
    assert "secret" not in str(caught.value)
    assert all(len(task.result().ids) == 8 for task in others)


@pytest.mark.parametrize("code", [1, -2])
async def test_a_full_cache_puts_answers_back_and_they_go_on(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    decode, calls = Context.decode, 0

    def failing(self: Context, batch: Batch) -> None:
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            raise DecodeFailed(code)
        decode(self, batch)

    requests = [asking([5 + number] * 20, max_tokens=12, ignore_eos=True) for number in range(4)]
    async with opened() as engine:
        expected = [(await answer(engine, request)).ids for request in requests]
        monkeypatch.setattr(Context, "decode", failing)
        found = await asyncio.gather(*(answer(engine, request) for request in requests))
    assert [said.ids for said in found] == expected


async def test_a_request_that_never_fits_ends_alone(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Context, batch: Batch) -> None:
        raise DecodeFailed(1)

    async with opened() as engine:
        monkeypatch.setattr(Context, "decode", fail)
        with pytest.raises(OutOfMemory):
            await answer(engine, asking())
        monkeypatch.undo()
        assert (await answer(engine, asking())).ids


async def test_unloading_ends_what_is_under_way(opened: Opened) -> None:
    sink = RecordingSink()
    async with opened() as engine:
        engine.start(ENDLESS, sink)
        await until(lambda: bool(sink.chunks))
    assert isinstance(sink.ends[0], Unavailable)


async def test_unloading_waits_for_who_still_reads_the_vocabulary(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp would read freed memory."""
    held, go_on = threading.Event(), threading.Event()
    prepare = Prompts.token_ids

    def slow(self: Prompts, prompt: TextPrompt) -> list[int]:
        held.set()
        assert go_on.wait(10)
        return prepare(self, prompt)

    monkeypatch.setattr(Prompts, "token_ids", slow)
    async with opened() as engine:
        asked = asyncio.create_task(engine.tokenize(TextPrompt("Hello")))
        await until(held.is_set)
        closing = asyncio.create_task(engine.__aexit__(None, None, None))
        await asyncio.sleep(0)
        assert not closing.done()
        go_on.set()
        assert await asked
        await closing
        await engine.__aenter__()  # for the end of the block


async def test_loading_again_and_again_leaks_neither_memory_nor_threads(opened: Opened) -> None:
    async def once() -> None:
        async with opened(embeddings=True) as engine:
            await answer(engine, asking())
            await engine.embed(EmbedRequest(id="e", inputs=(TextPrompt("text"),)))

    for _ in range(3):
        await once()
    gc.collect()
    before, threads = _resident_bytes(), threading.active_count()
    for _ in range(8):
        await once()
    gc.collect()
    assert _resident_bytes() - before < 40 * 2**20, "the model alone has 13 MiB, each time"
    assert threading.active_count() <= threads


async def test_llama_cpp_says_nothing_on_stderr(
    opened: Opened, capfd: pytest.CaptureFixture[str], converted: Callable[..., Path]
) -> None:
    async with opened() as engine:
        await answer(engine, asking())
    assert capfd.readouterr() == ("", "")


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
