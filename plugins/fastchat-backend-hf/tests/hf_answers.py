"""Requests in a few words, and answers read to the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastchat_backend_hf import HfOptions, open_hf
from fastchat_serve import ChatPrompt, Chunk, EngineSetup, GenerateRequest, SamplingParams, TextPrompt, TokenPrompt
from fastchat_serve.stepping import SteppingEngine

Prompt = TextPrompt | TokenPrompt | ChatPrompt
Folder = Callable[[str], Path]
Opened = Callable[..., AbstractAsyncContextManager[SteppingEngine]]


def engine_on(folder: Path, **options: Any) -> SteppingEngine:
    engine = open_hf(EngineSetup(str(folder), HfOptions(**options), lambda *_: None))
    assert isinstance(engine, SteppingEngine)
    return engine


@dataclass(frozen=True)
class Answer:
    chunks: list[Chunk]

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def ids(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]

    @property
    def last(self) -> Chunk:
        return self.chunks[-1]


async def answer(engine: SteppingEngine, request: GenerateRequest) -> Answer:
    """The whole answer; checks that it ends once, with its last chunk."""
    async with asyncio.timeout(30):
        chunks = [chunk async for chunk in engine.generate_stream(request)]
    assert [chunk.finish_reason is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage is not None
    return Answer(chunks)


def asking(
    prompt: Sequence[int] | Prompt = (5, 6, 7),
    *,
    id: str = "r",
    temperature: float = 0.0,
    max_tokens: int | None = 8,
    **fields: Any,
) -> GenerateRequest:
    """A request for greedy tokens; `prompt` may be token ids, and `fields` go where they belong."""
    own = {name: fields.pop(name) for name in list(fields) if name in GenerateRequest.__struct_fields__}
    if not isinstance(prompt, Prompt):
        prompt = TokenPrompt(tuple(prompt))
    sampling = SamplingParams(temperature=temperature, max_tokens=max_tokens, **fields)
    return GenerateRequest(id=id, prompt=prompt, sampling=sampling, **own)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds, for at most ten seconds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # the engine's thread changes it, and sets no event
            await asyncio.sleep(0)
