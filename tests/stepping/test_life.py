"""How such an engine is loaded, dies and is unloaded."""

from __future__ import annotations

import asyncio
import logging
import threading

import anyio
import pytest

from fastchat_serve import EmbedRequest, EngineError, EngineLoad, StartupError, TextPrompt, Unavailable
from fastchat_serve.stepping import engine as stepping_engine
from tests.sinks import Remembering, a_request
from tests.stepping.parrot import Gate, Loader, engine_with

pytestmark = pytest.mark.anyio

THREAD = "fastchat-parrot-engine"
ENDLESS = a_request("a", ignore_eos=True)


def alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fastchat-parrot")]


async def test_the_model_lives_on_one_thread_and_is_gone_when_that_is_left() -> None:
    loader = Loader()
    engine = engine_with(loader)
    for _ in range(2):  # it can be opened again
        sink = Remembering()
        async with engine:
            engine.start(ENDLESS, sink)
            await sink.has(2)
            assert loader.model_lives
        assert isinstance(sink.error, Unavailable)
        assert loader.done == [("load", THREAD), ("close", THREAD), ("leave", THREAD)]
        assert not loader.model_lives, "without garbage being collected"
        assert not alive()
        assert engine.current_load() == EngineLoad()
        loader.done.clear()


async def test_a_model_that_cannot_be_loaded_leaves_no_thread() -> None:
    loader = Loader()

    def fail(setup: object) -> None:
        raise StartupError("no such model")

    loader.on_load = fail
    with pytest.raises(StartupError, match="no such model"):
        await engine_with(loader).__aenter__()
    assert [what for what, _ in loader.done] == ["load", "leave"]
    assert not alive()


async def test_loading_that_is_cancelled_ends_at_its_next_word() -> None:
    loader, gate = Loader(), Gate()
    told: list[str] = []

    def load(setup) -> None:  # type: ignore[no-untyped-def]
        gate()
        for stage in ("weights", "tokenizer"):
            setup.progress(stage)
            told.append(stage)

    loader.on_load = load
    opening = asyncio.create_task(engine_with(loader).__aenter__())
    await asyncio.wrap_future(gate.reached)
    opening.cancel()
    await anyio.wait_all_tasks_blocked()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert told == []
    assert [what for what, _ in loader.done] == ["load", "leave"]
    assert not alive()


@pytest.mark.parametrize("error", [MemoryError("boom"), SystemExit(3)], ids=lambda error: type(error).__name__)
async def test_a_step_that_raises_ends_all_and_the_model_stays_until_the_engine_is_closed(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL + 1, "fastchat_serve.stepping.stepper")  # pytest would keep what is logged
    loader = Loader()

    def die() -> None:
        try:
            raise ValueError("the cause")
        except ValueError as cause:
            raise error from cause

    async with engine_with(loader) as engine:
        sinks = [Remembering() for _ in range(5)]
        for sink in sinks:
            engine.start(ENDLESS, sink)
        await sinks[0].has(1)
        loader.on_step = die
        for sink in sinks:
            await sink.ended()
            assert isinstance(sink.error, EngineError)
        assert engine.fatal_error is error
        assert error.__traceback__ is None
        with pytest.raises(EngineError, match="stopped working"):
            await anext(engine.generate_stream(a_request("a")))
        with pytest.raises(EngineError, match="stopped working"):
            await engine.embed(EmbedRequest(id="e", inputs=(TextPrompt("a"),)))
        assert await engine.tokenize(TextPrompt("a")) == (97,), "who prepares needs the model"
        assert [what for what, _ in loader.done] == ["load"]
    assert [what for what, _ in loader.done] == ["load", "close", "leave"]


async def test_texts_that_are_embedded_when_the_thread_dies_fail() -> None:
    loader = Loader()

    def die() -> None:
        raise SystemExit

    loader.on_step = die
    async with engine_with(loader) as engine:
        with anyio.fail_after(10), pytest.raises(EngineError):
            await engine.embed(EmbedRequest(id="e", inputs=(TextPrompt("a"),)))
        assert isinstance(engine.fatal_error, SystemExit)


async def test_it_dies_when_it_is_told_to() -> None:
    async with engine_with(Loader()) as engine:
        sink = Remembering()
        engine.start(ENDLESS, sink)
        engine.die()
        await sink.ended()
        assert isinstance(engine.fatal_error, RuntimeError)


async def test_closing_waits_for_who_still_prepares() -> None:
    loader, gate, sink = Loader(), Gate(), Remembering()
    loader.on_prepare = gate
    engine = await engine_with(loader).__aenter__()
    engine.start(ENDLESS, sink)
    waiting = asyncio.create_task(engine.tokenize(TextPrompt("a")))  # behind it, in the same queue
    await asyncio.wrap_future(gate.reached)
    closing = asyncio.create_task(engine.__aexit__(None, None, None))
    with pytest.raises(Unavailable):
        await waiting
    assert [what for what, _ in loader.done] == ["load"]
    gate.open()
    await closing
    assert isinstance(sink.error, Unavailable)
    assert [what for what, _ in loader.done] == ["load", "close", "leave"]


async def test_closing_does_not_wait_for_ever_for_a_stuck_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stepping_engine, "CLOSE_TIMEOUT_S", 0.05)
    loader, gate, sink = Loader(), Gate(), Remembering()
    loader.on_step = gate
    try:
        with anyio.fail_after(10):
            async with engine_with(loader) as engine:
                engine.start(ENDLESS, sink)
                await asyncio.wrap_future(gate.reached)
        assert isinstance(sink.error, Unavailable)
        assert "stuck" in caplog.text
    finally:
        gate.open()
    with anyio.fail_after(10):
        while alive():  # noqa: ASYNC110  # a thread ends, and sets no event
            await anyio.sleep(0.01)
