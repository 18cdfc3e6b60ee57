"""The first thing a newcomer does: ``conf/local.toml``, the embedded model, and OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from tests.conftest import Serving

pytest.importorskip("fastchat_backend_hf", reason="needs the hf backend")
pytest.importorskip("fastchat_model_demo", reason="needs the demonstration model")

pytestmark = pytest.mark.anyio

LOCAL = Path(__file__).parents[2] / "conf" / "local.toml"
HELLO = [{"role": "user", "content": "Hello!"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
async def client(serving: Serving) -> AsyncIterator[AsyncOpenAI]:
    async with (
        serving(LOCAL.read_text()) as server,
        AsyncOpenAI(base_url=f"{server.url}/v1", api_key="not needed", max_retries=0) as client,
    ):
        yield client


async def test_a_newcomer_gets_answers_streams_completions_embeddings_and_the_model_list(client: AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(model="demo", messages=HELLO, temperature=0)
    stream = await client.chat.completions.create(model="demo", messages=HELLO, temperature=0, stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    completion = await client.completions.create(model="demo", prompt="1, 2, 3,", max_tokens=4, temperature=0)
    embedding = await client.embeddings.create(model="demo", input=["one text", "another"])
    models = await client.models.list()

    assert "demonstration" in (reply.choices[0].message.content or "")
    assert reply.choices[0].finish_reason == "stop"
    assert "".join(pieces) == reply.choices[0].message.content
    assert len(pieces) > 5
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 4
    assert [len(item.embedding) for item in embedding.data] == [len(embedding.data[0].embedding)] * 2
    assert sum(value**2 for value in embedding.data[0].embedding) == pytest.approx(1, abs=1e-4)
    assert [model.id for model in models.data] == ["demo"]


async def test_a_conversation_goes_on(client: AsyncOpenAI) -> None:
    messages = [{"role": "user", "content": "My name is Anna."}]
    first = await client.chat.completions.create(model="demo", messages=messages, temperature=0)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "What is my name?"},
    ]
    second = await client.chat.completions.create(model="demo", messages=messages, temperature=0)

    assert "Anna" in (second.choices[0].message.content or "")


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_given_tool_is_called(client: AsyncOpenAI, streamed: bool) -> None:
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    asked = {"model": "demo", "messages": messages, "tools": [WEATHER], "temperature": 0}
    if streamed:
        chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
        calls = [call.function for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        finish = chunks[-1].choices[0].finish_reason
    else:
        choice = (await client.chat.completions.create(**asked)).choices[0]
        calls, finish = [call.function for call in choice.message.tool_calls or ()], choice.finish_reason

    assert [call.name for call in calls] == ["get_weather"]
    assert json.loads(calls[0].arguments) == {"city": "Paris"}
    assert finish == "tool_calls"


async def test_a_seeded_answer_is_the_same_again(client: AsyncOpenAI) -> None:
    asked = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": 40,
        "seed": 7,
    }
    answers = {(await client.chat.completions.create(**asked)).choices[0].message.content for _ in range(3)}

    assert len(answers) == 1
