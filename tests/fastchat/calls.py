"""What an OpenAI client asks of a model behind a FastChat worker, when that is recorded and when it is replayed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from openai import AsyncOpenAI

__all__ = ["CALLS"]

ONCE = [{"role": "user", "content": "Tell me a story."}]
TALK = [
    {"role": "system", "content": "You are a poet."},
    {"role": "user", "content": "Once upon a time"},
    {"role": "assistant", "content": "there was a cat."},
    {"role": "user", "content": "And then?"},
]
Call = Callable[[AsyncOpenAI], Awaitable[Any]]


async def a_chat(client: AsyncOpenAI) -> Any:
    messages: Any = ONCE
    said = await client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=8)
    return [said.choices[0].message.content, said.choices[0].finish_reason, *_counts(said.usage)]


async def a_stream(client: AsyncOpenAI) -> Any:
    messages: Any = TALK
    stream = await client.chat.completions.create(
        model="tiny",
        messages=messages,
        temperature=0,
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    text = ""
    ends: list[Any] = []
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            ends += [choice.finish_reason] if choice.finish_reason else []
        if chunk.usage:
            ends += _counts(chunk.usage)
    return [text, *ends]


async def a_chat_as_long_as_the_context(client: AsyncOpenAI) -> Any:
    messages: Any = ONCE
    said = await client.chat.completions.create(model="tiny", messages=messages, temperature=0, stop=["."])
    return [said.choices[0].message.content, said.choices[0].finish_reason, *_counts(said.usage)]


async def a_text_that_stops(client: AsyncOpenAI) -> Any:
    said = await client.completions.create(
        model="tiny", prompt="Once upon a time", temperature=0, max_tokens=24, stop=[" small"]
    )
    return [said.choices[0].text, said.choices[0].finish_reason, *_counts(said.usage)]


async def characters_of_several_tokens(client: AsyncOpenAI) -> Any:
    said = await client.completions.create(model="tiny", prompt="😀 é 中", temperature=0, max_tokens=12)
    return [said.choices[0].text, said.choices[0].finish_reason, *_counts(said.usage)]


async def embeddings(client: AsyncOpenAI) -> Any:
    said = await client.embeddings.create(model="tiny", input=["to be", "or not"])
    return [[round(value, 5) for value in item.embedding[:8]] for item in said.data] + [said.usage.prompt_tokens]


def _counts(usage: Any) -> list[int]:
    return [usage.prompt_tokens, usage.completion_tokens]


CALLS: dict[str, Call] = {
    call.__name__: call
    for call in (
        a_chat,
        a_stream,
        a_chat_as_long_as_the_context,
        a_text_that_stops,
        characters_of_several_tokens,
        embeddings,
    )
}
