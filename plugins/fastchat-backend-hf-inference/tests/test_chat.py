"""Conversations, through providers and endpoints."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest
from hf_asking import PATIENCE_S, Opened, answer_of, asking, events

from fastchat_serve import (
    Capability,
    ChatPrompt,
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    JsonObject,
    JsonSchema,
    Message,
    Overloaded,
    SamplingParams,
    Secret,
    ServeError,
    ToolCall,
    ToolSpec,
    Unavailable,
    Usage,
)
from tests.conftest import Serving

pytestmark = pytest.mark.anyio

UPSTREAM = """
[controller]
[api]
[[worker]]
backend = "echo"
names = ["echo"]
[worker.options]
delay_ms = 1
"""


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


COUNTS = {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}}
WHOLE = (delta(role="assistant", content=""), delta(content="hel"), delta(content="lo"), delta("stop"), COUNTS)


def says(*data: Any) -> Any:
    return lambda request: events(*data)


async def test_a_real_server_answers(serving: Serving, opened: Opened) -> None:
    async with serving(UPSTREAM) as upstream, opened("echo", base_url=f"{upstream.url}/v1") as engine:
        chunks = await answer_of(engine, asking("to be or not", sampling=SamplingParams(max_tokens=2)))

    assert "".join(chunk.text for chunk in chunks) == "to be"
    assert (chunks[-1].finish_reason, chunks[-1].usage) == ("length", Usage(5, 2))


async def test_leaving_ends_the_answer_at_a_real_server(serving: Serving, opened: Opened) -> None:
    async with serving(UPSTREAM) as upstream, opened("echo", base_url=f"{upstream.url}/v1") as engine:
        stream = engine.generate_stream(asking("word " * 10_000))
        await anext(stream)
        await stream.aclose()

        async with asyncio.timeout(PATIENCE_S):
            while upstream.application.workers[0].load().running:  # noqa: ASYNC110 - it sets no event
                await asyncio.sleep(0.001)
        assert engine.current_load().running == 0


async def test_streams_do_not_pile_up_in_the_client(opened: Opened, answered: Any) -> None:
    answered(says(*WHOLE))
    async with opened(base_url="https://e.example/v1") as engine:
        for _ in range(3):
            await answer_of(engine)

        assert not engine._client.exit_stack._exit_callbacks


async def test_a_hub_id_goes_to_the_router_with_its_provider_and_who_pays(opened: Opened, answered: Any) -> None:
    requests = answered(says(*WHOLE))
    async with opened("org/model", token=Secret("hf_secret"), provider="together", bill_to="acme") as engine:
        chunks = await answer_of(engine)

    assert "".join(chunk.text for chunk in chunks) == "hello"
    assert str(requests[0].url) == "https://router.huggingface.co/v1/chat/completions"
    assert requests[0].headers["authorization"] == "Bearer hf_secret"
    assert requests[0].headers["x-hf-bill-to"] == "acme"
    body = json.loads(requests[0].content)
    assert (body["model"], body["stream_options"]) == ("org/model:together", {"include_usage": True})


async def test_tools_and_calls_pass_through(opened: Opened, answered: Any) -> None:
    part = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x":'}}
    rest = {"index": 0, "function": {"arguments": "1}"}}
    requests = answered(says(delta(tool_calls=[part]), delta(tool_calls=[rest]), delta("tool_calls"), COUNTS))
    prompt = ChatPrompt((Message(role="user", content="x"),), tools=(ToolSpec("f"),), tool_choice="")
    async with opened(token=Secret("hf_x")) as engine:
        chunks = await answer_of(engine, asking(prompt=prompt))

    assert [call for chunk in chunks for call in chunk.tool_calls] == [ToolCall("c", "f", '{"x":1}')]
    body = json.loads(requests[0].content)
    assert body["tools"] == [{"type": "function", "function": {"name": "f"}}]
    assert body["tool_choice"] == "required"


async def test_thoughts_pass_through(opened: Opened, answered: Any) -> None:
    answered(says(delta(reasoning_content="hm"), delta(reasoning="m"), *WHOLE))
    async with opened(token=Secret("hf_x")) as engine:
        assert "".join(chunk.reasoning for chunk in await answer_of(engine)) == "hmm"


async def test_sampling_is_sent(opened: Opened, answered: Any) -> None:
    requests = answered(says(*WHOLE))
    sampling = SamplingParams(temperature=0.5, top_p=0.9, seed=2**40 + 3, max_tokens=5, stop=("x",), presence_penalty=1)
    async with opened(token=Secret("hf_x")) as engine:
        await answer_of(engine, asking(sampling=sampling, logprobs=2))

    wanted = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "max_tokens": 5, "stop": ["x"], "presence_penalty": 1}
    body = json.loads(requests[0].content)
    assert (wanted | {"logprobs": True, "top_logprobs": 2}).items() <= body.items()


async def test_schemas_are_written_as_the_server_reads_them(opened: Opened, answered: Any) -> None:
    requests = answered(says(*WHOLE))
    schema = asking(constraint=JsonSchema({"type": "string"}))
    async with opened(token=Secret("hf_x")) as engine:
        await answer_of(engine, schema)
    async with opened(base_url="https://e.example", server="tgi") as engine:
        await answer_of(engine, schema)
        await answer_of(engine, asking(constraint=JsonObject()))
    async with opened(base_url="https://e.example") as engine:
        assert Capability.JSON_SCHEMA not in engine.info.capabilities

    openai, tgi, tgi_object = (json.loads(request.content) for request in requests)
    assert openai["response_format"]["json_schema"]["schema"] == {"type": "string"}
    assert tgi["response_format"] == {"type": "json_object", "value": {"type": "string"}}
    assert tgi_object["response_format"] == {"type": "json_object", "value": {"type": "object"}}
    assert "top_p" not in tgi


def refuses(status: int, body: str = "", **headers: str) -> Any:
    return lambda request: httpx2.Response(status, text=body, headers=headers)


def breaks(error: Exception) -> Any:
    def handler(request: httpx2.Request) -> httpx2.Response:
        raise error

    return handler


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        pytest.param(refuses(400, '{"error": {"message": "bad"}}'), InvalidRequest, id="bad request"),
        pytest.param(refuses(401), EngineError, id="no key"),
        pytest.param(refuses(404), EngineError, id="no model"),
        pytest.param(refuses(429, retry_after="9"), Overloaded, id="busy"),
        pytest.param(refuses(503, '{"error": "Model is loading", "estimated_time": 20}'), Unavailable, id="loading"),
        pytest.param(refuses(500), EngineError, id="failed"),
        pytest.param(breaks(httpx2.ConnectError("no")), Unavailable, id="not there"),
        pytest.param(breaks(httpx2.ReadTimeout("no")), DeadlineExceeded, id="silent"),
        pytest.param(says({"error": "boom", "error_type": "generation"}), EngineError, id="in the stream"),
        pytest.param(says({"error": "busy", "error_type": "overloaded"}), Overloaded, id="busy in the stream"),
        pytest.param(says({"error": "`top_p`", "error_type": "validation"}), InvalidRequest, id="bad in the stream"),
        pytest.param(says(delta(content="hel")), EngineError, id="cut off"),
        pytest.param(says(delta("stop")), EngineError, id="not counted"),
        pytest.param(says({"choices": 7}), EngineError, id="junk"),
        pytest.param(lambda request: httpx2.Response(200, text="data: {nope\n\n"), EngineError, id="no JSON"),
    ],
)
async def test_what_goes_wrong_is_an_error_of_ours(
    opened: Opened, answered: Any, handler: Any, kind: type[ServeError]
) -> None:
    answered(handler)
    async with opened(token=Secret("hf_secret")) as engine:
        with pytest.raises(ServeError) as caught:
            await answer_of(engine)

        assert type(caught.value) is kind
        assert "huggingface.co" not in str(caught.value)
        assert (engine.current_load().running, engine.fatal_error) == (0, None)


async def test_what_the_server_says_and_when_to_come_back_are_passed_on(opened: Opened, answered: Any) -> None:
    answered(refuses(429, '{"error": {"message": "slow down"}}', **{"retry-after": "9"}))
    async with opened(token=Secret("hf_x")) as engine:
        with pytest.raises(Overloaded, match="slow down") as caught:
            await answer_of(engine)

    assert caught.value.retry_after_s == 9


async def test_half_a_character_is_refused(opened: Opened, answered: Any) -> None:
    requests = answered(says(*WHOLE))
    async with opened(token=Secret("hf_x")) as engine:
        with pytest.raises(InvalidRequest, match="Unicode"):
            await answer_of(engine, asking("half \ud83d"))

    assert not requests
