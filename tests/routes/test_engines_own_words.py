"""What an engine tells apart itself: thoughts, tool calls, adapters. Others leave the first two to parsers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
import pytest
from openai import AsyncOpenAI, BadRequestError

from fastchat_serve import CONTRACT, Capability, ChatPrompt, Chunk, GenerateRequest, NoOptions, ToolCall, Usage
from fastchat_serve.engines.echo import EchoEngine, EchoOptions
from fastchat_serve.plugins import Backend, Plugins
from tests.conftest import Serving

pytestmark = pytest.mark.anyio

SAID: Any = [{"role": "user", "content": "weather in Oslo and Rome?"}]
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
OSLO, ROME = (ToolCall(id_, "weather", f'{{"city": "{city}"}}') for id_, city in (("a", "Oslo"), ("", "Rome")))
ANSWER = (
    Chunk(reasoning="Two cities"),
    Chunk(reasoning=", two calls."),
    Chunk(text="Let me "),
    Chunk(text="see."),
    Chunk(tool_calls=(OSLO,)),
    Chunk(tool_calls=(ROME,), finish_reason="stop", usage=Usage(5, 9)),
)
CONFIG = """
[controller]
[api]
[[worker]]
backend = "telling"
names = ["m"]
"""


class TellingEngine(EchoEngine):
    """Answers a prompt with tools by `ANSWER`, any other with the name of its adapter."""

    start = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(EchoOptions())
        more = {Capability.TOOLS, Capability.TOOL_CALLS, Capability.TOOL_CHOICE, Capability.ADAPTERS}
        self.info = msgspec.structs.replace(
            self.info, capabilities=self.info.capabilities | more, adapters=("law", "medicine")
        )

    async def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        assert isinstance(request.prompt, ChatPrompt)
        if request.prompt.tool_choice is not None:
            yield Chunk(text=repr(request.prompt.tool_choice), finish_reason="stop", usage=Usage(1, 1))
        elif request.prompt.tools:
            for chunk in ANSWER:
                yield chunk
        else:
            thoughts = "Hm." if request.prompt.messages[-1].text == "think" else ""
            yield Chunk(text=" ")
            yield Chunk(reasoning=thoughts, text=request.adapter or "base")
            yield Chunk(finish_reason="stop", usage=Usage(1, 1))


@pytest.fixture
async def client(serving: Serving) -> AsyncIterator[AsyncOpenAI]:
    plugins = Plugins({})
    plugins.backends["telling"] = Backend("telling", lambda _: TellingEngine(), NoOptions, CONTRACT)
    async with (
        serving(CONFIG, plugins) as server,
        AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=20) as client,
    ):
        yield client


async def test_calls_and_thoughts_of_a_plain_answer(client: AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(model="m", messages=SAID, tools=[TOOL])

    (choice,) = reply.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert choice.message.reasoning_content == "Two cities, two calls."  # type: ignore[attr-defined]
    first, second = choice.message.tool_calls or ()
    assert (first.id, first.function.arguments) == ("a", OSLO.arguments)  # type: ignore[union-attr]
    assert second.function.arguments == ROME.arguments  # type: ignore[union-attr]
    assert second.id.startswith("call_"), "one that the engine did not name gets a name"


async def test_a_stream_says_the_same(client: AsyncOpenAI) -> None:
    text, thoughts, found, reasons = "", "", {}, []
    async for event in await client.chat.completions.create(model="m", messages=SAID, tools=[TOOL], stream=True):
        (choice,) = event.choices
        text += choice.delta.content or ""
        thoughts += getattr(choice.delta, "reasoning_content", None) or ""
        for call in choice.delta.tool_calls or ():
            found[call.index] = call.function.arguments  # type: ignore[union-attr]
        if choice.finish_reason is not None:
            reasons.append(choice.finish_reason)

    assert (text, thoughts, reasons) == ("Let me see.", "Two cities, two calls.", ["tool_calls"])
    assert found == {0: OSLO.arguments, 1: ROME.arguments}


@pytest.mark.parametrize("stream", [False, True])
async def test_one_call_at_a_time_if_the_client_wants_it_so(client: AsyncOpenAI, stream: bool) -> None:
    made: Any = await client.chat.completions.create(
        model="m", messages=SAID, tools=[TOOL], parallel_tool_calls=False, stream=stream
    )
    if stream:
        count = len([call async for event in made for call in event.choices[0].delta.tool_calls or ()])
    else:
        count = len(made.choices[0].message.tool_calls)

    assert count == 1


async def test_thoughts_are_streamed_without_tools_too(client: AsyncOpenAI) -> None:
    said: Any = [{"role": "user", "content": "think"}]
    deltas = [
        event.choices[0].delta
        async for event in await client.chat.completions.create(model="m", messages=said, stream=True)
    ]

    assert [delta.reasoning_content for delta in deltas if hasattr(delta, "reasoning_content")] == ["Hm."]
    assert "".join(delta.content or "" for delta in deltas) == " base"


@pytest.mark.parametrize(
    ("choice", "heard"),
    [("required", "''"), ({"type": "function", "function": {"name": "weather"}}, "'weather'")],
    ids=["any", "named"],
)
async def test_a_choice_of_tools_reaches_the_engine(client: AsyncOpenAI, choice: Any, heard: str) -> None:
    reply = await client.chat.completions.create(model="m", messages=SAID, tools=[TOOL], tool_choice=choice)

    assert reply.choices[0].message.content == heard


async def test_an_adapter_is_a_model_of_its_own(client: AsyncOpenAI) -> None:
    said: Any = [{"role": "user", "content": "x"}]
    answers = {
        model: (await client.chat.completions.create(model=model, messages=said)).choices[0].message.content
        for model in ("m", "law", "medicine")
    }

    assert answers == {"m": " base", "law": " law", "medicine": " medicine"}
    assert sorted([card.id async for card in client.models.list()]) == ["law", "m", "medicine"]


async def test_an_adapter_makes_no_embeddings(client: AsyncOpenAI) -> None:
    assert (await client.embeddings.create(model="m", input="x")).data
    with pytest.raises(BadRequestError, match="adapter"):
        await client.embeddings.create(model="law", input="x")
