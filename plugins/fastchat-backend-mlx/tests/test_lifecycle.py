"""Streams that are given up, engines that fail, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

pytest.importorskip("mlx_lm", reason="mlx is not installed here")

from mlx_answers import PROMPTS, Opened, RecordingSink, answer, asking, setup, until
from mlx_lm.generate import BatchGenerator
from msgspec.structs import replace

from fastchat_backend_mlx import open_mlx
from fastchat_backend_mlx.generation import Generation
from fastchat_serve import Chunk, DeadlineExceeded, EngineError, OutOfMemory, TextPrompt, Unavailable
from fastchat_serve.stepping import Preparation

pytestmark = pytest.mark.anyio


ENDLESS = asking(max_tokens=None, ignore_eos=True)
LONG = TextPrompt("Once upon a time there was a lighthouse. " * 100)


async def to_the_end(stream: AsyncGenerator[Chunk, None]) -> None:
    async with asyncio.timeout(30):
        async for _ in stream:
            pass


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fastchat-mlx-engine"]


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
        handle.abort()
        assert sink.ends == [None]
        assert engine.current_load().running == 0


async def test_a_stream_can_be_closed_after_any_token_and_holds_nothing_then(opened: Opened) -> None:
    async with opened() as engine:
        for count in range(6):
            async with aclosing(engine.generate_stream(ENDLESS)) as stream:
                for _ in range(count):
                    await anext(stream)
            assert (engine.current_load().running, engine.current_load().waiting) == (0, 0)
            assert engine.current_load().kv_used_fraction == 0


async def test_others_go_on_when_one_leaves(opened: Opened) -> None:
    async with opened(prefill_tokens=16) as engine:
        request = asking(max_tokens=200, ignore_eos=True)  # longer than the three are there
        alone = await answer(engine, request)
        kept = asyncio.create_task(answer(engine, request))
        for prompt in (LONG, TextPrompt("Hello"), LONG):
            sink = RecordingSink()
            handle = engine.start(asking(prompt, max_tokens=50), sink)
            await until(lambda: engine.current_load().running == 2)
            handle.abort()
            await until(lambda sink=sink: bool(sink.ends))  # type: ignore[misc]
        assert (await kept).token_ids == alone.token_ids


async def test_a_request_can_be_aborted_before_it_is_prepared(opened: Opened) -> None:
    async with opened() as engine:
        sinks = [RecordingSink() for _ in range(20)]
        for sink in sinks:
            engine.start(asking(LONG), sink).abort()
        await until(lambda: all(sink.ends for sink in sinks))
        assert [sink.ends for sink in sinks] == [[None]] * 20
        assert not any(sink.chunks for sink in sinks)


async def test_an_answer_ends_at_its_deadline(opened: Opened) -> None:
    async with opened() as engine:
        with pytest.raises(DeadlineExceeded):
            await answer(engine, asking(max_tokens=None, ignore_eos=True, timeout_s=0.2))
        with pytest.raises(DeadlineExceeded):
            await answer(engine, asking(timeout_s=0.0))


async def test_a_step_that_fails_ends_the_rows_in_it_and_no_other(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(max_batch=1) as engine:
        expected = await answer(engine, asking())
        stream = engine.generate_stream(ENDLESS)
        await anext(stream)
        waiting = asyncio.create_task(answer(engine, asking()))
        await until(lambda: engine.current_load().waiting == 1)
        with monkeypatch.context() as patched:
            patched.setattr(BatchGenerator, "next", failing(RuntimeError("boom in /secret"), patched))
            with pytest.raises(EngineError) as caught:
                await to_the_end(stream)
        assert "secret" not in str(caught.value)
        assert (await waiting).token_ids == expected.token_ids
        assert engine.fatal_error is None


async def test_memory_that_runs_out_is_told_as_that(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("[metal::malloc] Attempting to allocate 99 bytes which is greater than the maximum")
    async with opened() as engine:
        with monkeypatch.context() as patched:
            patched.setattr(BatchGenerator, "next", failing(error, patched))
            with pytest.raises(OutOfMemory):
                await answer(engine, asking())
        await answer(engine, asking())


def failing(error: BaseException, patched: pytest.MonkeyPatch) -> Any:
    """A function that raises once, and is then what it was."""

    def fail(*_: object) -> None:
        patched.undo()
        raise error

    return fail


async def test_an_output_that_is_no_number_ends_its_own_answer(opened: Opened) -> None:
    async with opened() as engine:
        expected = await answer(engine, asking())
        kept = asyncio.create_task(answer(engine, asking()))
        with pytest.raises(EngineError, match="not a number"):
            await answer(engine, asking(logit_bias={5: float("nan")}))
        assert (await kept).token_ids == expected.token_ids


async def test_steps_that_keep_failing_end_the_engine(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the device is lost")

    async with opened() as engine:
        monkeypatch.setattr(BatchGenerator, "next", fail)
        for _ in range(3):
            with pytest.raises(EngineError):
                await answer(engine, asking())
        await until(lambda: engine.fatal_error is not None)
        assert isinstance(engine.fatal_error, RuntimeError)


@pytest.mark.parametrize("error", [MemoryError("boom"), SystemExit(3)], ids=lambda error: type(error).__name__)
async def test_a_thread_that_dies_ends_all_streams_and_the_engine_says_so(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def die(*_: object) -> None:
        raise error

    async with opened(max_batch=2) as engine:
        sinks = [RecordingSink() for _ in range(5)]
        for sink in sinks:
            engine.start(ENDLESS, sink)
        await until(lambda: len(sinks[0].chunks) > 1)
        monkeypatch.setattr(Generation, "step", die)
        await until(lambda: all(sink.ends for sink in sinks))
        assert all(isinstance(sink.ends[0], EngineError) for sink in sinks)
        assert engine.fatal_error is error
        with pytest.raises(EngineError, match="stopped working"):
            await answer(engine, asking())
    assert not engine_threads()


async def test_a_request_that_cannot_be_prepared_is_told_no_internals(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("/secret/path")

    monkeypatch.setattr(Preparation, "answer", fail)
    async with opened() as engine:
        with pytest.raises(EngineError) as caught:
            await answer(engine, asking())
        assert "secret" not in str(caught.value)


async def test_closing_ends_the_streams_and_leaves_nothing_behind() -> None:
    engine = open_mlx(setup(prefix_cache_bytes="64MiB"))
    sink = RecordingSink()
    async with engine:
        generation = weakref.ref(engine._loaded.generation)  # type: ignore[attr-defined]
        model = weakref.ref(engine._loaded.generation._model)  # type: ignore[attr-defined]
        await answer(engine, asking())
        engine.start(ENDLESS, sink)  # type: ignore[attr-defined]
        await until(lambda: bool(sink.chunks))
    assert isinstance(sink.ends[0], Unavailable)
    assert not engine_threads()
    # The thread that waited for the engine's may still be forgetting it.
    await until(lambda: gc.collect() >= 0 and generation() is None and model() is None)


async def test_an_engine_can_be_opened_again() -> None:
    engine = open_mlx(setup())
    found = []
    for _ in range(2):
        async with engine:
            found.append((await answer(engine, asking())).token_ids)  # type: ignore[arg-type]

    assert found[0] == found[1]


async def test_two_engines_in_one_process_do_not_disturb_each_other(opened: Opened) -> None:
    async with opened() as one, opened() as other:
        found = await asyncio.gather(*(answer(engine, asking(said)) for engine in (one, other) for said in PROMPTS))

    assert [got.token_ids for got in found[: len(PROMPTS)]] == [got.token_ids for got in found[len(PROMPTS) :]]


async def test_loading_that_is_cancelled_leaves_no_thread() -> None:
    began = threading.Event()
    engine = open_mlx(replace(setup(), progress=lambda stage, fraction=None: began.set()))
    opening = asyncio.create_task(engine.__aenter__())
    await until(began.is_set)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert not engine_threads()
