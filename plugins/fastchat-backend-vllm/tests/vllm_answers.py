"""Engines of this backend, requests in a few words, and answers read to the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fastchat_backend_vllm import VllmOptions, open_vllm
from fastchat_backend_vllm.engine import VllmEngine
from fastchat_serve import (
    ChatPrompt,
    Chunk,
    EngineSetup,
    GenerateRequest,
    Message,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
)

Prompt = TextPrompt | TokenPrompt | ChatPrompt

needs_vllm = [
    pytest.mark.anyio,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("default"),  # vLLM imports half of the world, which has its own
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here"),
]

CAPITAL = ChatPrompt((Message(role="user", content="What is the capital of France?"),))


@asynccontextmanager
async def opened(model: Path, **options: Any) -> AsyncIterator[VllmEngine]:
    """``async with opened(demo, max_num_seqs=4) as engine:``"""
    settings = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "kv_cache_memory": "256MiB"} | options
    engine = open_vllm(EngineSetup(str(model), VllmOptions(**settings), lambda *_: None))
    assert isinstance(engine, VllmEngine)
    async with engine:
        yield engine


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


async def answer(engine: VllmEngine, request: GenerateRequest) -> Answer:
    """The whole answer; checks that it ends once, with its last chunk."""
    async with asyncio.timeout(120):
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


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Let the loop turn until `condition` holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # vLLM's process changes it, and sets no event
            await asyncio.sleep(0.005)
