"""Structured answers of the embedded model, over HTTP, with OpenAI's own client."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI

import fastchat_serve
from tests.conftest import Serving
from tests.end_to_end.structured import structured_answers

pytest.importorskip("fastchat_backend_hf", reason="needs the hf backend")
pytest.importorskip("fastchat_model_demo", reason="needs the demonstration model")

pytestmark = pytest.mark.anyio

LOCAL = Path(__file__).parents[2] / "conf" / "local.toml"
HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
async def url(serving: Serving) -> AsyncIterator[str]:
    async with serving(LOCAL.read_text()) as server:
        yield f"{server.url}/v1"


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=url, api_key="not needed", max_retries=0) as client:
        yield client


@pytest.mark.timeout(600)  # two hundred answers of a hundred tokens, on whatever machine
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
async def test_a_hundred_of_a_hundred_answers_are_valid_under_their_schema(url: str, streamed: bool) -> None:
    answers = await structured_answers(url, "demo", runs=100, streamed=streamed)

    assert len(answers) == 100
    assert len({json.dumps(answer) for answer in answers}) > 90, "the model decides, not the constraint"
    assert {"note" in answer for answer in answers} == {True, False}


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ({"choice": ["red", "green", "blue"]}, r"red|green|blue"),
        ({"regex": "[0-9]{4}-[0-9]{2}"}, r"[0-9]{4}-[0-9]{2}"),
        ({"grammar": 'root ::= "(" root ")" | [a-c]'}, r"\(*[a-c]\)*"),
        ({"json": {"type": "integer", "minimum": 0, "maximum": 99}}, r"[0-9]{1,2}"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_other_forms_hold_too(client: AsyncOpenAI, asked: dict[str, Any], allowed: str) -> None:
    for seed in range(5):
        reply = await client.chat.completions.create(
            model="demo", messages=HELLO, seed=seed, max_tokens=64, extra_body={"structured_outputs": asked}
        )
        assert reply.choices[0].message.content is not None
        if reply.choices[0].finish_reason == "stop":
            assert re.fullmatch(allowed, reply.choices[0].message.content)


async def test_json_object_is_an_object(client: AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(
        model="demo", messages=HELLO, temperature=0, max_tokens=400, response_format={"type": "json_object"}
    )

    assert (reply.choices[0].message.content or "").startswith("{")
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(reply.choices[0].message.content or ""), dict)


async def test_a_schema_that_cannot_be_served_is_refused_by_name(client: AsyncOpenAI) -> None:
    with pytest.raises(BadRequestError, match="uniqueItems"):
        await client.chat.completions.create(
            model="demo",
            messages=HELLO,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "list", "schema": {"type": "array", "uniqueItems": True}},
            },
        )


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 20}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("get_weather", "get_time")
]


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"get_weather", "get_time"}),
        ({"type": "function", "function": {"name": "get_time"}}, {"get_time"}),
    ],
    ids=["any", "named"],
)
async def test_a_demanded_tool_is_called_whatever_was_said(
    client: AsyncOpenAI, choice: Any, names: set[str], streamed: bool
) -> None:
    for seed in range(5):
        asked: dict[str, Any] = {
            "model": "demo",
            "messages": HELLO,
            "tools": TOOLS,
            "tool_choice": choice,
            "seed": seed,
        }
        if streamed:
            chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
            calls = [call.function for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
            finish = chunks[-1].choices[0].finish_reason
        else:
            reply = (await client.chat.completions.create(**asked)).choices[0]
            calls, finish = [call.function for call in reply.message.tool_calls or ()], reply.finish_reason
        assert [call.name for call in calls if call.name not in names] == []
        assert len(calls) == 1
        assert json.loads(calls[0].arguments).keys() == {"city"}
        assert finish == "tool_calls"


def shown_blocks() -> list[str]:
    page = Path(fastchat_serve.__file__).parent / "docs" / "structured.md"
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("block", shown_blocks(), ids=lambda block: block.partition("\n")[0])
async def test_what_the_manual_shows_works(url: str, block: str) -> None:
    def run() -> str:
        with OpenAI(base_url=url, api_key="not needed", max_retries=0) as client:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block, "structured.md", "exec"), {"client": client})
        return printed.getvalue()

    assert (await anyio.to_thread.run_sync(run)).strip()
