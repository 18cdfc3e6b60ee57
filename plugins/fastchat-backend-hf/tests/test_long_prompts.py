"""A long prompt is read in blocks beside the answers under way: nobody waits for it, and it can be given up."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest
import torch
from hf_answers import Opened, answer, asking, until
from torch import Tensor
from transformers import PreTrainedModel

from fastchat_backend_hf import scoring
from fastchat_backend_hf.batch_runner import BatchRunner
from fastchat_backend_hf.generation import Generation
from fastchat_backend_hf.pace import STEP_TOKENS, Pace
from fastchat_backend_hf.reading import Reading
from fastchat_backend_hf.runners import Block
from fastchat_serve import Chunk, OutOfMemory, TextPrompt
from fastchat_serve.stepping import News

pytestmark = pytest.mark.anyio

LONG = [random.Random(9).randrange(4, 1000) for _ in range(400)]
ENDLESS = asking(max_tokens=None, ignore_eos=True)


class Quiet:
    """A sink that only counts."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.ends: list[Exception | None] = []

    def push(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)

    def end(self, error: Exception | None) -> None:
        self.ends.append(error)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one size: what they take on this machine does not matter."""
    monkeypatch.setattr(Pace, "alone", lambda self: STEP_TOKENS)
    monkeypatch.setattr(Pace, "beside", lambda self, crowded: STEP_TOKENS)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps long enough for the loop to act while a long prompt is read, though the machine is busy."""
    step = Generation.step

    def slowed(self: Generation) -> list[News]:
        time.sleep(0.02)
        return step(self)

    monkeypatch.setattr(Generation, "step", slowed)


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("model", ["llama", "bloom"])
async def test_running_answers_get_a_token_in_every_step_while_a_long_prompt_is_read(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    steps: list[tuple[int, set[str]]] = []
    step = Generation.step

    def watched(self: Generation) -> list[News]:
        names = {id(one.stream): one.request.id for one in (*self._scheduler.running, *self._scheduler.reading)}
        before = sum(sequence.unread for sequence in self._scheduler.reading)
        news = step(self)
        after = sum(sequence.unread for sequence in self._scheduler.reading)
        steps.append((before - after, {names.get(id(item.stream), "") for item in news if item.chunk}))
        return news

    monkeypatch.setattr(Generation, "step", watched)
    async with opened(model) as engine:
        sinks = {name: Quiet() for name in ("a", "b", "c")}
        handles = [engine.start(asking(id=name, max_tokens=None, ignore_eos=True), sinks[name]) for name in sinks]
        await until(lambda: all(sink.chunks for sink in sinks.values()))
        steps.clear()
        long = await answer(engine, asking(LONG[:200], id="long", max_tokens=1))
        for handle in handles:
            handle.abort()
    assert len(long.ids) == 1
    while_reading = [names for read, names in steps if read > 0]
    assert len(while_reading) >= 200 // STEP_TOKENS - 1
    assert max(read for read, _ in steps) <= STEP_TOKENS
    assert all(names == set(sinks) for names in while_reading)


@pytest.mark.usefixtures("steady")
async def test_tokens_are_those_of_generate_however_a_prompt_is_read(opened: Opened, llama: PreTrainedModel) -> None:
    prompts = [LONG[i : i + length] for i, length in enumerate((1, 2, 16, 17, 33, 150, 399))]
    async with opened(prefix_cache=False) as engine, aclosing(engine.generate_stream(ENDLESS)) as running:
        await anext(running)
        got = await asyncio.gather(
            *(answer(engine, asking(p, id=str(i), max_tokens=9, ignore_eos=True)) for i, p in enumerate(prompts))
        )
    for prompt, one in zip(prompts, got, strict=True):
        expected: Any = llama.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            do_sample=False,
            max_new_tokens=9,
            eos_token_id=None,
        )
        assert one.ids == expected[0, len(prompt) :].tolist()


async def test_short_prompts_share_a_step(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "beside", lambda self, crowded: 4 * STEP_TOKENS)
    most = 0
    go_on = threading.Event()
    go_on.set()
    decode = BatchRunner.decode

    def watched(self: BatchRunner, tokens: Sequence[int], blocks: Sequence[Block] = ()) -> Tensor:
        nonlocal most
        most = max(most, len(blocks))
        assert sum(block.most for block in blocks) <= 4 * STEP_TOKENS
        go_on.wait(10)
        return decode(self, tokens, blocks)

    monkeypatch.setattr(BatchRunner, "decode", watched)
    requests = [asking([7 + i] * (5 + i), id=str(i), max_tokens=6, ignore_eos=True) for i in range(12)]
    async with opened() as engine:
        alone = [await answer(engine, request) for request in requests]
        async with aclosing(engine.generate_stream(ENDLESS)) as running:
            await anext(running)
            go_on.clear()
            answers = asyncio.gather(*(answer(engine, request) for request in requests))
            await until(lambda: engine.current_load().running + engine.current_load().waiting == 13)
            await engine.tokenize(TextPrompt("what is prepared after them"))
            go_on.set()
            together = await answers
    assert most >= 4
    assert [one.ids for one in together] == [one.ids for one in alone]


@pytest.mark.usefixtures("steady", "slow")
async def test_a_short_prompt_overtakes_a_long_one(opened: Opened) -> None:
    async with opened() as engine, aclosing(engine.generate_stream(ENDLESS)) as running:
        await anext(running)
        long = Quiet()
        engine.start(asking(LONG, id="long", max_tokens=1), long)
        await until(lambda: engine.current_load().running == 2)
        await answer(engine, asking([5, 6, 7], id="short", max_tokens=1))
        assert not long.chunks
        await until(lambda: bool(long.ends))


@pytest.mark.usefixtures("steady", "slow")
@pytest.mark.parametrize("beside", [True, False], ids=["beside an answer", "alone"])
async def test_a_prompt_given_up_while_it_is_read_leaves_nothing(opened: Opened, beside: bool) -> None:
    async with opened(prefix_cache=False) as engine:
        generation = engine._loaded.generation
        assert generation is not None
        mate = Quiet()
        if beside:
            mate_handle = engine.start(ENDLESS, mate)
            await until(lambda: bool(mate.chunks))
        sink = Quiet()
        handle = engine.start(asking(LONG, id="long"), sink)
        await until(lambda: engine.current_load().running == 1 + beside)
        handle.abort()
        await until(lambda: bool(sink.ends))
        assert (sink.chunks, sink.ends) == ([], [None])
        if beside:
            mate_handle.abort()
            await until(lambda: bool(mate.ends))
        assert generation._runner.used_fraction == 0
        assert not generation._scheduler.reading


@pytest.mark.usefixtures("steady")
async def test_memory_that_runs_out_in_the_middle_of_a_prompt_ends_that_request_alone(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reliability F14."""
    cells = BatchRunner._cells

    def fail_late(self: BatchRunner, reading: Reading) -> Any:
        if reading.done >= 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cells(self, reading)

    mate_request = asking(max_tokens=400, ignore_eos=True)
    async with opened() as engine:
        well = await answer(engine, mate_request)
        monkeypatch.setattr(BatchRunner, "_cells", fail_late)
        mate = asyncio.create_task(answer(engine, mate_request))
        with pytest.raises(OutOfMemory):
            await answer(engine, asking(LONG, id="long"))
        assert not mate.done(), "it does not have to end first"
        assert (await mate).ids == well.ids
        assert engine.current_load().kv_used_fraction == 0
        assert (await answer(engine, mate_request)).ids == well.ids


async def test_a_prompt_put_back_while_it_is_read_is_answered_later(opened: Opened) -> None:
    early = asking([5] * 100, id="early", max_tokens=100, ignore_eos=True)
    late = asking(LONG[:120], id="late", max_tokens=5, ignore_eos=True)
    async with opened(kv_cache_tokens=256) as engine:
        alone = [await answer(engine, request) for request in (early, late)]
    async with opened(kv_cache_tokens=256) as engine:
        together = await asyncio.gather(*(answer(engine, request) for request in (early, late)))
    assert [one.ids for one in together] == [one.ids for one in alone]


def test_a_step_that_reads_is_steered_to_twice_the_time_of_one_that_does_not() -> None:
    pace = Pace(2048)
    assert pace.beside(crowded=False) == 0, "first it must be known what the answers take"
    pace.took_beside(0, 0.010)
    sizes = []
    for _ in range(200):
        tokens = pace.beside(crowded=False)
        pace.took_beside(tokens, 0.010 + 0.0001 * tokens)
        sizes.append(tokens)
    assert sorted({tokens for tokens in sizes[50:] if tokens}) == [96]
    assert sizes.count(0) in (5, 6), "now and then a step shows what the answers take by now"
    for _ in range(60):  # deeper in a prompt, a token takes more
        tokens = pace.beside(crowded=False)
        pace.took_beside(tokens, 0.010 + 0.0005 * tokens)
    assert pace.beside(crowded=False) in (0, STEP_TOKENS)


def test_while_more_wait_than_run_a_step_takes_three_times_as_long() -> None:
    pace = Pace(2048)
    pace.took_beside(0, 0.010)
    for _ in range(20):
        tokens = pace.beside(crowded=True)
        pace.took_beside(tokens, 0.010 + 0.0001 * tokens)
    assert (pace.beside(crowded=True), pace.beside(crowded=False)) == (192, 96)


def test_a_block_grows_where_it_costs_nothing_and_stops_at_the_most() -> None:
    pace = Pace(512)
    pace.took_beside(0, 0.010)
    for _ in range(40):
        pace.took_beside(pace.beside(crowded=False), 0.010)
    assert pace.beside(crowded=False) in (0, 512)


def test_one_fast_step_makes_no_long_block() -> None:
    pace = Pace(2048)
    pace.took_beside(0, 0.010)
    before = pace.beside(crowded=False)
    pace.took_beside(before, 0.0100001)
    assert pace.beside(crowded=False) <= before + STEP_TOKENS


def test_alone_blocks_take_a_quarter_of_a_second() -> None:
    pace = Pace(100_000)
    for _ in range(60):
        tokens = pace.alone()
        pace.took_alone(tokens, tokens / 4000)
    assert pace.alone() == 992


async def test_a_pass_that_fails_with_prompts_beside_it_is_told_of_once_and_everybody_is_served(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Pace, "beside", lambda self, crowded: STEP_TOKENS)
    async with opened() as engine:
        well = await answer(engine, asking(LONG, max_tokens=4))
        engine_decode = BatchRunner.decode

        def fail_mixed(self: BatchRunner, tokens: Sequence[int], blocks: Sequence[Block] = ()) -> Tensor:
            if blocks:
                raise ValueError("a bug")
            return engine_decode(self, tokens, blocks)

        monkeypatch.setattr(BatchRunner, "decode", fail_mixed)
        async with aclosing(engine.generate_stream(ENDLESS)) as running:
            await anext(running)
            got = await answer(engine, asking([4, *LONG[1:]], id="other", max_tokens=4))
            again = await answer(engine, asking(LONG, id="again", max_tokens=4))
        assert got.ids
        assert again.ids == well.ids
    assert sum("read apart" in record.message for record in caplog.records) == 1


async def test_a_block_whose_log_probabilities_failed_is_read_again(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asking(LONG[:40], max_tokens=2, prompt_logprobs=1, echo=True)
    raw, calls = scoring.raw_logprobs, itertools.count()

    def fail_once(*args: Any) -> Any:
        if next(calls) == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return raw(*args)

    monkeypatch.setattr(scoring, "raw_logprobs", fail_once)
    async with opened(prefix_cache=False) as engine:
        first = (await answer(engine, request)).chunks[0].prompt
    assert first is not None
    assert first.logprobs is not None
    assert len(first.logprobs) == 40
