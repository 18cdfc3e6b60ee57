"""Prompts are prepared beside the loop: a short one never waits for a long one, and nobody waits for the tokenizer."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from hf_answers import Opened, answer, asking, until

from fastchat_serve import EngineError, TextPrompt
from fastchat_serve.stepping import Preparation
from fastchat_serve.text import is_slow

pytestmark = pytest.mark.anyio


async def test_a_short_prompt_overtakes_any_number_of_long_ones(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, go_on = threading.Event(), threading.Event()
    prepare = Preparation.answer

    def slow(self: Preparation[Any], request: Any, *args: Any) -> Any:
        if is_slow(request):
            held.set()
            go_on.wait(10)
            raise EngineError("long enough")
        return prepare(self, request, *args)

    monkeypatch.setattr(Preparation, "answer", slow)
    async with opened() as engine:
        long = [asyncio.create_task(answer(engine, asking(TextPrompt("word " * 20_000), id=str(i)))) for i in range(9)]
        await until(held.is_set)
        try:
            assert (await answer(engine, asking())).ids
            assert await engine.tokenize(TextPrompt("short"))
            assert not any(task.done() for task in long)
        finally:
            go_on.set()
        assert all(isinstance(error, EngineError) for error in await asyncio.gather(*long, return_exceptions=True))


async def test_the_loop_turns_while_a_long_text_is_tokenised(opened: Opened) -> None:
    """The tokenizer must not hold Python's lock: a megabyte takes it half a second."""
    turns = 0
    async with opened(context_length=400_000, kv_cache_tokens=400_000) as engine:
        task = asyncio.create_task(engine.tokenize(TextPrompt("some words " * 50_000)))
        while not task.done():  # its turns are what is counted
            await asyncio.sleep(0)
            turns += 1
        assert len(await task) > 50_000
    assert turns > 100
