"""Texts take turns on their way to vectors."""

from __future__ import annotations

import asyncio
import struct

import anyio
import anyio.lowlevel
import pytest

from fastchat_serve import EmbedRequest, InvalidRequest, TextPrompt
from tests.stepping.parrot import Gate, Loader, engine_with

pytest.importorskip("numpy", reason="vectors are made with numpy")
pytestmark = pytest.mark.anyio


def asking(*texts: str) -> EmbedRequest:
    return EmbedRequest(id="e", inputs=tuple(map(TextPrompt, texts)))


async def test_every_text_has_its_vector_in_its_place() -> None:
    async with engine_with(Loader()) as engine:
        found = await engine.embed(asking("a", "bcd", "ef"))
    assert (found.dimensions, found.prompt_tokens) == (2, 6)
    assert struct.unpack("<6f", found.data) == (0.0, 1.0) * 3


async def test_nothing_to_embed_is_no_request() -> None:
    async with engine_with(Loader()) as engine:
        with pytest.raises(InvalidRequest):
            await engine.embed(asking())


async def test_jobs_take_turns_and_the_longest_texts_come_first() -> None:
    loader, gate = Loader(), Gate()
    loader.on_step = gate
    async with engine_with(loader) as engine, anyio.create_task_group() as tasks:
        tasks.start_soon(engine.embed, asking("1", "333", "22"))
        await asyncio.wrap_future(gate.reached)
        tasks.start_soon(engine.embed, asking("a", "bb"))
        await anyio.lowlevel.checkpoint()
        await engine.tokenize(TextPrompt("behind it in the queue of the preparing thread"))
        gate.open()
    order = [bytes(text).decode() for text in loader.embedded]  # type: ignore[call-overload]
    assert [text for text in order if text.isdigit()] == ["333", "22", "1"]
    assert [text for text in order if text.isalpha()] == ["bb", "a"]
    assert order.index("bb") < order.index("1"), "they take turns"


async def test_a_job_that_nobody_waits_for_has_no_more_turns() -> None:
    loader, gate = Loader(), Gate()
    loader.on_step = gate
    async with engine_with(loader) as engine:
        gone = asyncio.create_task(engine.embed(asking("a", "bb", "ccc")))
        await asyncio.wrap_future(gate.reached)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        gate.open()
        await engine.embed(asking("x"))
    assert [bytes(text) for text in loader.embedded] == [b"ccc", b"x"]  # type: ignore[call-overload]
