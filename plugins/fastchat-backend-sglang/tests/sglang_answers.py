"""Asking engines, in few words."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from fastchat_backend_sglang import SglangOptions
from fastchat_backend_sglang.engine import SglangEngine
from fastchat_serve import (
    EngineSetup,
    GenerateRequest,
    SamplingParams,
    TokenPrompt,
)
from fastchat_serve.testing.asking import answer, saying, until

__all__ = ["ENDLESS", "Opened", "answer", "asking", "greedy_ids", "opened_on", "read", "until"]

Opened = Callable[..., AbstractAsyncContextManager[SglangEngine]]

_numbers = itertools.count()


def opened_on(folder: Path) -> Opened:
    """Opens engines on the model in `folder`, on the CPU and in float32 unless told otherwise."""

    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[SglangEngine]:
        settings: dict[str, Any] = {"device": "cpu", "dtype": "float32"} | options
        async with SglangEngine(EngineSetup(str(folder), SglangOptions(**settings), lambda *_: None)) as engine:
            yield engine

    return opened


def asking(text: str = "What is 3 + 4?", **fields: Any) -> GenerateRequest:
    """A greedy request of at most 32 tokens; fields of the request or of its sampling."""
    sampling = {name: fields.pop(name) for name in list(fields) if name in SamplingParams.__struct_fields__}
    prompt = fields.pop("prompt", saying(text))
    params = SamplingParams(**({"temperature": 0.0, "max_tokens": 32} | sampling))
    return GenerateRequest(id=f"request-{next(_numbers)}", prompt=prompt, sampling=params, **fields)


ENDLESS: dict[str, Any] = {"ignore_eos": True, "max_tokens": 1500}


async def read(engine: SglangEngine, request: GenerateRequest, count: int) -> None:
    """So many chunks, and no more: the stream is closed then."""
    async with aclosing(engine.generate_stream(request)) as chunks:
        for _ in range(count):
            await anext(chunks)


async def greedy_ids(engine: SglangEngine, prompt: Sequence[int], count: int) -> list[int]:
    """The tokens that the engine finds most likely, one after the other."""
    request = asking(prompt=TokenPrompt(tuple(prompt)), max_tokens=count)
    return list((await answer(engine, request)).token_ids)
