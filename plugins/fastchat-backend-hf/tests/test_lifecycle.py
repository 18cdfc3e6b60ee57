"""Streams that are given up, engines that fail, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import pytest
import torch
from hf_answers import Folder, Opened, RecordingSink, answer, asking, engine_on, until
from torch import Tensor

from fastchat_backend_hf.batch_runner import BatchRunner
from fastchat_backend_hf.cells import Cells
from fastchat_backend_hf.embeddings import Embedder
from fastchat_backend_hf.kv import LEAST_COLUMNS
from fastchat_backend_hf.reading import Reading
from fastchat_backend_hf.runners import Block
from fastchat_backend_hf.sampling import Draw, Sampler
from fastchat_backend_hf.shelves import Shelf
from fastchat_backend_hf.solo import SoloRunner
from fastchat_serve import EmbedRequest, EngineError, OutOfMemory, TextPrompt, Unavailable
from fastchat_serve.stepping import EmbedJob, Preparation

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
        handle.abort()
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


async def test_an_aborted_request_is_let_go_before_the_prompts_in_front_of_it_are_prepared(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversation takes up to a second to render: nobody's slot waits for that of somebody else."""
    held, go_on = threading.Event(), threading.Event()
    prepare = Preparation.answer

    def slow(self: Preparation[Any], request: Any, *args: Any) -> Any:
        if request.id == "slow":
            held.set()
            go_on.wait(10)
        return prepare(self, request, *args)

    monkeypatch.setattr(Preparation, "answer", slow)
    async with opened() as engine:
        first, sink = RecordingSink(), RecordingSink()
        engine.start(asking(id="slow"), first)
        await until(held.is_set)
        engine.start(asking(), sink).abort()
        try:
            assert not sink.ends, "the handle comes first"
            await until(lambda: bool(sink.ends))
        finally:
            go_on.set()
        await until(lambda: bool(first.ends))
        assert (sink.ends, sink.chunks, first.ends) == ([None], [], [None])
        assert engine.current_load().waiting == 0


async def test_a_waiting_request_can_be_aborted(opened: Opened) -> None:
    async with opened(max_batch=1) as engine, aclosing(engine.generate_stream(ENDLESS)) as running:
        await anext(running)
        sink = RecordingSink()
        handle = engine.start(asking(id="waits"), sink)
        await until(lambda: engine.current_load().waiting == 1)
        handle.abort()
        await until(lambda: bool(sink.ends))
        assert (sink.ends, sink.chunks) == ([None], [])


async def test_closing_the_generator_frees_its_row(opened: Opened) -> None:
    async with opened(max_batch=1) as engine:
        for _ in range(5):
            async with aclosing(engine.generate_stream(ENDLESS)) as stream:
                await anext(stream)
        assert engine.current_load().kv_used_fraction == 0
        assert (await answer(engine, asking())).ids


async def test_a_step_wakes_the_loop_once_for_all_streams(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened() as engine:
        steps = 0
        posted = 0
        all_are_there = threading.Event()
        decode = BatchRunner.decode

        def counted(self: BatchRunner, tokens: Sequence[int], blocks: Sequence[Block] = ()) -> Tensor:
            nonlocal steps
            steps += 1
            all_are_there.wait(10)
            return decode(self, tokens, blocks)

        loop = asyncio.get_running_loop()
        post = loop.call_soon_threadsafe

        def counted_post(callback: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
            nonlocal posted
            posted += threading.current_thread().name == "fastchat-hf-engine"
            return post(callback, *args, **kwargs)

        monkeypatch.setattr(BatchRunner, "decode", counted)
        monkeypatch.setattr(loop, "call_soon_threadsafe", counted_post)
        requests = [asking((5, i), id=str(i), max_tokens=20, ignore_eos=True) for i in range(8)]
        answers = asyncio.gather(*(answer(engine, request) for request in requests))
        await until(lambda: engine.current_load().running + engine.current_load().waiting == 8)
        await engine.tokenize(TextPrompt("what is prepared after them"))
        all_are_there.set()
        await answers
    assert posted <= steps + 8  # a step without decoding only begins rows
    assert steps < 40


async def test_an_unloaded_engine_ends_its_streams_and_gives_its_memory_back(opened: Opened, folder: Folder) -> None:
    sink = RecordingSink()
    engine = engine_on(folder("llama"), device="cpu")
    for _ in range(2):  # it can be opened again
        sink = RecordingSink()
        async with asyncio.timeout(20):
            async with engine:
                assert engine._loaded.embedder is not None
                model = weakref.ref(engine._loaded.embedder._model)
                engine.start(ENDLESS, sink)
                await until(lambda: bool(sink.chunks))  # noqa: B023
            assert [type(error) for error in sink.ends] == [Unavailable]
        gc.collect()
        assert model() is None
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastchat-hf")]


@pytest.mark.parametrize(
    "cause", [SystemExit("the thread is lost"), torch.AcceleratorError("CUDA error: device-side assert triggered")]
)
async def test_when_the_thread_dies_every_request_ends_with_an_error(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, cause: BaseException
) -> None:
    async with opened() as engine:
        sinks = [RecordingSink() for _ in range(3)]
        for sink in sinks:
            engine.start(ENDLESS, sink)
        await until(lambda: all(sink.chunks for sink in sinks))

        def die(self: BatchRunner, tokens: Sequence[int], blocks: Sequence[Block] = ()) -> Tensor:
            raise cause

        monkeypatch.setattr(BatchRunner, "decode", die)
        await until(lambda: all(sink.ends for sink in sinks))
        assert [[type(error) for error in sink.ends] for sink in sinks] == [[EngineError]] * 3
        assert engine.fatal_error is cause
        with pytest.raises(EngineError):
            await answer(engine, asking())
        assert engine.current_load().running == 0


async def test_embedding_fails_too_when_the_thread_is_dead(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    request = EmbedRequest(id="e", inputs=(TextPrompt("text"),))
    async with opened() as engine, asyncio.timeout(20):

        def die(self: Embedder, job: EmbedJob) -> bool:
            raise SystemExit("the thread is lost")

        monkeypatch.setattr(Embedder, "advance", die)
        for _ in range(2):
            with pytest.raises(EngineError):
                await engine.embed(request)


async def test_unloading_does_not_wait_for_ever_for_a_stuck_step(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, release = threading.Event(), threading.Event()

    def hang(self: BatchRunner, tokens: Sequence[int], blocks: Sequence[Block] = ()) -> Tensor:
        stuck.set()
        release.wait(20)
        raise SystemExit

    monkeypatch.setattr("fastchat_serve.stepping.engine.CLOSE_TIMEOUT_S", 0.05)
    sink = RecordingSink()
    try:
        async with asyncio.timeout(10), opened() as engine:
            monkeypatch.setattr(BatchRunner, "decode", hang)
            engine.start(ENDLESS, sink)
            await until(stuck.is_set)
        assert [type(error) for error in sink.ends] == [Unavailable]
        assert "stuck" in caplog.text
    finally:
        release.set()
        await until(lambda: not [thread for thread in threading.enumerate() if thread.name == "fastchat-hf-engine"])


def failing_cells(culprit: int, error: Exception) -> Callable[..., Cells]:
    """What is called before a block is read, whether by itself or beside answers under way."""
    cells = BatchRunner._cells

    def fail(self: BatchRunner, reading: Reading) -> Cells:
        if reading.tokens[0] == culprit:
            raise error
        return cells(self, reading)

    return fail


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (ValueError("/home/someone/secret"), EngineError),
    ],
)
async def test_a_newcomer_that_fails_ends_alone(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception]
) -> None:
    """Reliability F14, F17."""
    async with opened() as engine:
        well = [await answer(engine, asking((5, i))) for i in range(4)]
        monkeypatch.setattr(BatchRunner, "_cells", failing_cells(77, error))
        async with aclosing(engine.generate_stream(ENDLESS)) as running:
            await anext(running)
            requests = [asking((77, 5), id="bad"), *(asking((5, i), id=str(i)) for i in range(4))]
            got = await asyncio.gather(*(answer(engine, request) for request in requests), return_exceptions=True)
            await anext(running)
    assert type(got[0]) is expected
    assert "secret" not in str(got[0])
    assert [a.ids for a in got[1:]] == [a.ids for a in well]  # type: ignore[union-attr]


async def test_memory_that_runs_out_in_a_step_ends_the_longest_answer(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as engine:
        well = await answer(engine, asking(max_tokens=30, ignore_eos=True))
        decode = BatchRunner.decode

        def fail_over_100(self: BatchRunner, tokens: Sequence[int], blocks: Sequence[Block] = ()) -> Tensor:
            if max(self._rows.lengths) > 100:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return decode(self, tokens, blocks)

        monkeypatch.setattr(BatchRunner, "decode", fail_over_100)
        long = asyncio.create_task(answer(engine, asking([9] * 90, id="long", max_tokens=30, ignore_eos=True)))
        short = await answer(engine, asking(max_tokens=30, ignore_eos=True))
        with pytest.raises(OutOfMemory):
            await long
    assert short.ids == well.ids


async def test_a_cache_that_cannot_grow_generously_grows_as_much_as_it_must(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [asking([9 + i] * 30, id=str(i), max_tokens=30, ignore_eos=True) for i in range(3)]
    async with opened() as engine:
        well = [await answer(engine, request) for request in requests]
    resize = Shelf.resize

    def small_device(self: Shelf, rows: int) -> None:
        if rows > 3 or self.columns > LEAST_COLUMNS:  # twice as many as two are too many
            raise torch.OutOfMemoryError("CUDA out of memory")
        resize(self, rows)

    monkeypatch.setattr(Shelf, "resize", small_device)
    async with opened() as engine:
        got = await asyncio.gather(*(answer(engine, request) for request in requests))
        assert [one.ids for one in got] == [one.ids for one in well]
        with pytest.raises(OutOfMemory):
            await answer(engine, asking([9] * (LEAST_COLUMNS + 1)))
        assert (await answer(engine, requests[0])).ids == well[0].ids


async def test_a_failing_draw_ends_the_rows_of_its_step(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened() as engine:
        with monkeypatch.context() as patched:

            def fail(self: Sampler, logits: Tensor) -> list[Draw]:
                raise torch.OutOfMemoryError("CUDA out of memory")

            patched.setattr(Sampler, "draw", fail)
            with pytest.raises(OutOfMemory):
                await answer(engine, asking())
        assert (await answer(engine, asking())).ids


async def test_a_step_that_fails_ends_its_rows_and_the_engine_goes_on(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as engine:
        well = await answer(engine, asking())
        with monkeypatch.context() as patched:

            def fail(self: BatchRunner, tokens: Sequence[int], blocks: Sequence[Block] = ()) -> Tensor:
                raise ValueError("a bug")

            patched.setattr(BatchRunner, "decode", fail)
            with pytest.raises(EngineError):
                await answer(engine, asking())
        assert (await answer(engine, asking())).ids == well.ids
        assert engine.fatal_error is None


async def test_a_row_that_fails_alone_ends_alone_where_rows_have_own_passes(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened("mamba") as engine:
        requests = [asking((5, i), id=str(i), max_tokens=12, ignore_eos=True) for i in range(3)]
        well = [await answer(engine, request) for request in requests]
        forward = SoloRunner._forward
        passes = 0

        def fail_once(self: SoloRunner, *args: Any) -> Any:
            nonlocal passes
            passes += 1
            if passes == 8:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(self, *args)

        monkeypatch.setattr(SoloRunner, "_forward", fail_once)
        got = await asyncio.gather(*(answer(engine, request) for request in requests), return_exceptions=True)
    assert sum(isinstance(one, OutOfMemory) for one in got) == 1
    assert all(isinstance(one, OutOfMemory) or one.ids == other.ids for one, other in zip(got, well, strict=True))  # type: ignore[union-attr]


async def test_logits_that_are_not_numbers_end_the_answer_and_taint_nobody(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reliability F18. A poisoned row of the cache would leak through the mask: zero times NaN is NaN."""
    short = asking(max_tokens=30, ignore_eos=True)
    async with opened() as engine:
        well = await answer(engine, short)
        join = BatchRunner.join

        def poison(self: BatchRunner, reading: Reading) -> None:
            join(self, reading)
            if reading.tokens[0] == 77:
                row = self._rows._rows[-1]
                for part in row.shelf.parts:
                    part[row.slot] = torch.nan

        monkeypatch.setattr(BatchRunner, "join", poison)
        async with aclosing(engine.generate_stream(ENDLESS)) as mate:  # so that the cache outlives the poisoned row
            await anext(mate)
            with pytest.raises(EngineError, match="not a number"):
                await answer(engine, asking((77,) * 40))
            async with aclosing(engine.generate_stream(short)) as stream:
                ids = list((await anext(stream)).token_ids)  # in the row that was poisoned
                await answer(engine, asking([9] * 30, id="wide", max_tokens=2))  # lets the step look at all of it
                ids += [token async for chunk in stream for token in chunk.token_ids]
        assert ids == well.ids


async def test_requests_leave_no_thread_behind(opened: Opened) -> None:
    """Reliability F42."""
    async with opened() as engine:
        await answer(engine, asking())
        before = threading.active_count()
        for i in range(100):
            async with aclosing(engine.generate_stream(asking(id=str(i), max_tokens=2))) as stream:
                if i % 2:
                    await anext(stream)
        assert threading.active_count() == before
        assert engine.current_load().running == engine.current_load().waiting == 0
        assert not engine._streams
