"""For an engine's own tests: requests in a few words, and answers read to the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anyio

from fastchat_serve.engine import (
    ChatPrompt,
    Chunk,
    Engine,
    GenerateRequest,
    Message,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
)
from fastchat_serve.testing.answers import Answer, read_stream

__all__ = ["RecordingSink", "answer", "asking", "saying", "until"]

Prompt = TextPrompt | TokenPrompt | ChatPrompt


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


def saying(text: str) -> ChatPrompt:
    """A conversation of one turn."""
    return ChatPrompt((Message(role="user", content=text),))


async def answer(engine: Engine, request: GenerateRequest, within_s: float = 120) -> Answer:
    """The whole answer; raises what ended it otherwise. Checks that it ends once, with its last chunk."""
    with anyio.fail_after(within_s):
        whole = (await read_stream(engine, request)).whole()
    *others, last = whole.chunks
    assert all(chunk.finish_reason is None for chunk in others), "a chunk came after the end"
    assert last.usage is not None
    return whole


async def until(condition: Callable[[], bool], within_s: float = 60) -> None:
    """Let the loop turn until `condition` holds."""
    with anyio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110  # an engine's thread or process changes it, and sets no event
            await anyio.sleep(0.001)


class RecordingSink:
    """A sink that keeps everything, and takes nothing after the end."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.ends: list[Exception | None] = []

    def push(self, chunk: Chunk) -> None:
        assert not self.ends, "a chunk after the end"
        self.chunks.append(chunk)

    def end(self, error: Exception | None) -> None:
        assert not self.ends, "a second end"
        self.ends.append(error)
