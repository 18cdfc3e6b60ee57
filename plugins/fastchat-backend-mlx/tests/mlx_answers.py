"""Requests in a few words, and answers read to the end. Imports no mlx."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastchat_serve import (
    ChatPrompt,
    Chunk,
    EngineSetup,
    GenerateRequest,
    Message,
    PushEngine,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
)

Prompt = TextPrompt | TokenPrompt | ChatPrompt
Opened = Callable[..., AbstractAsyncContextManager[Any]]

WEIGHTS = Path(str(files("fastchat_model_demo") / "weights"))

PROMPTS = [
    "Hello!",
    "My name is Ada. What is my name?",
    "What is 7 plus 8?",
    "Tell me a story about a lighthouse.",
    "Say: naïve café 🙂",
]


@dataclass(frozen=True)
class Answer:
    chunks: list[Chunk]

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(token for chunk in self.chunks for token in chunk.token_ids)

    @property
    def last(self) -> Chunk:
        return self.chunks[-1]


async def answer(engine: PushEngine, request: GenerateRequest) -> Answer:
    """The whole answer; checks that it ends once, with its last chunk."""
    async with asyncio.timeout(60):
        chunks = [chunk async for chunk in engine.generate_stream(request)]
    assert [chunk.finish_reason is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage is not None
    return Answer(chunks)


async def answers(engine: PushEngine, requests: Sequence[GenerateRequest]) -> list[Answer]:
    """All of them, at once."""
    return await asyncio.gather(*(answer(engine, request) for request in requests))


def asking(
    prompt: str | Prompt = PROMPTS[3],
    *,
    id: str = "r",
    temperature: float = 0.0,
    max_tokens: int | None = 24,
    **fields: Any,
) -> GenerateRequest:
    """A request for greedy tokens; a text is what the user says, and `fields` go where they belong."""
    own = {name: fields.pop(name) for name in list(fields) if name in GenerateRequest.__struct_fields__}
    if isinstance(prompt, str):
        prompt = ChatPrompt((Message(role="user", content=prompt),))
    sampling = SamplingParams(temperature=temperature, max_tokens=max_tokens, **fields)
    return GenerateRequest(id=id, prompt=prompt, sampling=sampling, **own)


def setup(model: Path | str = WEIGHTS, **options: Any) -> EngineSetup:
    """For `open_mlx`: float32, and nothing kept from one request to the next unless `options` say so."""
    from fastchat_backend_mlx import MlxOptions

    settings: dict[str, Any] = {"dtype": "float32", "prefix_cache_bytes": "0B"} | options
    return EngineSetup(str(model), MlxOptions(**settings), lambda stage, fraction=None: None)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds, for at most thirty seconds."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # the engine's thread changes it, and sets no event
            await asyncio.sleep(0)
