"""Workers of FastChat's among ours: how they come and go, and what their answers become."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import httpx
import openai
import pytest
from openai import AsyncOpenAI

from fastchat_serve import Message
from fastchat_serve.fastchat.conversation import render
from fastchat_serve.protocol.fastchat import NETWORK_ERROR, Conversation
from fastchat_serve.server import HttpServer
from tests.fastchat.acting import VICUNA, Actor, Asked, Reply, replies, said, streamed
from tests.fastchat.conftest import Ours, client_of, listed, until
from tests.ports import free_port

pytestmark = pytest.mark.anyio

HELLO: Any = [{"role": "user", "content": "Hello you"}]
COUNTS = {"usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}


def a_worker(*messages: Any, names: tuple[str, ...] = ("tiny",), **lines: Any) -> Actor:
    """That answers every request for an answer with `messages`."""
    given = messages or ({"text": "Hi"}, {"text": "Hi there", "finish_reason": "stop", **COUNTS})
    return Actor(replies(*names, worker_generate_stream=lambda _: streamed(*given), **lines))


async def register(server: HttpServer, worker: Actor, **more: Any) -> httpx.Response:
    body = {"worker_name": worker.url, "check_heart_beat": True, "worker_status": None} | more
    async with httpx.AsyncClient(base_url=server.url) as http:
        return await http.post("/register_worker", json=body)


async def beat(server: HttpServer, worker: Actor, queue_length: int = 0) -> bool:
    async with httpx.AsyncClient(base_url=server.url) as http:
        return await beat_over(http, worker, queue_length)


async def beat_over(http: httpx.AsyncClient, worker: Actor, queue_length: int = 0) -> bool:
    body = {"worker_name": worker.url, "queue_length": queue_length}
    exist: bool = (await http.post("/receive_heart_beat", json=body)).json()["exist"]
    return exist


async def chat(client: AsyncOpenAI, **more: Any) -> Any:
    return await client.chat.completions.create(**{"model": "tiny", "messages": HELLO} | more)


async def events(client: AsyncOpenAI, **more: Any) -> list[str]:
    """The pieces of text of a stream."""
    stream = await client.chat.completions.create(**{"model": "tiny", "messages": HELLO, "stream": True} | more)
    return [chunk.choices[0].delta.content async for chunk in stream if chunk.choices[0].delta.content]


# --------------------------------------------------------------------------------------- coming and going


async def test_a_worker_that_registers_is_listed_and_answers(ours: Ours) -> None:
    worker = a_worker()
    async with worker.listening(), ours() as server, client_of(server) as client:
        assert (await register(server, worker)).json() is None
        await listed(server, "tiny")
        answer = await chat(client, max_tokens=5, temperature=0.5)

    assert answer.choices[0].message.content == "Hi there"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 2)
    (params,) = worker.asked_for("/worker_generate_stream")
    assert params["prompt"] == "Sys. USER: Hello you ASSISTANT:"
    assert (params["max_new_tokens"], params["temperature"], params["echo"]) == (5, 0.5, False)
    assert None not in params.values()  # its own worker loses a slot for each


async def test_a_worker_may_register_before_it_listens(ours: Ours) -> None:
    worker = a_worker()
    worker.port = free_port()
    async with ours() as server:
        await register(server, worker)
        assert server.application.registry.models == ("echo",)
        async with worker.listening(worker.port):
            await listed(server, "tiny")


async def test_who_is_not_heard_of_is_listed_no_more_and_is_told_so(ours: Ours) -> None:
    worker = a_worker()
    async with worker.listening(), ours("lease_s = 0.4") as server:
        await register(server, worker)
        await listed(server, "tiny")
        await listed(server)
        assert not await beat(server, worker)
        await register(server, worker)
        await listed(server, "tiny")


async def test_beats_keep_a_worker(ours: Ours) -> None:
    worker = a_worker()
    async with (
        worker.listening(),
        ours("lease_s = 1.0") as server,
        httpx.AsyncClient(base_url=server.url) as http,  # a client takes longer to make than a beat
    ):
        await register(server, worker)
        await listed(server, "tiny")
        until_s = anyio.current_time() + 2.4
        while anyio.current_time() < until_s:
            assert await beat_over(http, worker)
            await anyio.sleep(0.05)  # it is time that this is about
        assert server.application.registry.models == ("echo", "tiny")


async def test_a_worker_without_beats_stays_as_long_as_it_answers(ours: Ours) -> None:
    worker = a_worker()
    async with ours("lease_s = 0.2") as server:
        async with worker.listening():
            await register(server, worker, check_heart_beat=False)
            await listed(server, "tiny")
            await anyio.sleep(0.5)  # more than the lease
            assert server.application.registry.models == ("echo", "tiny")
        await refresh(server)
        await listed(server)


async def refresh(server: HttpServer) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=20) as http:
        await http.post("/refresh_all_workers")


async def test_a_worker_that_died_is_listed_no_more_after_the_first_request_for_it(ours: Ours) -> None:
    worker = a_worker()
    async with ours() as server, client_of(server) as client:
        async with worker.listening():
            await register(server, worker)
            await listed(server, "tiny")
        with pytest.raises(openai.APIStatusError) as refused:
            await chat(client)
        assert refused.value.status_code == 503
        await listed(server)
        assert not await beat(server, worker)


async def test_a_refresh_sees_other_models(ours: Ours) -> None:
    worker = a_worker(names=("tiny", "small"))
    async with worker.listening(), ours() as server:
        await register(server, worker)
        await listed(server, "tiny", "small")
        worker.line = replies("small", "large")
        await refresh(server)
        await listed(server, "small", "large")


async def test_b17_a_worker_that_registers_again_is_asked_for_its_template_again(ours: Ours) -> None:
    worker = a_worker()
    async with worker.listening(), ours() as server, client_of(server) as client:
        await register(server, worker)
        await listed(server, "tiny")
        other = VICUNA | {"sep_style": 10, "max_image_size_mb": None, "sep": "<end>"}  # ChatML, as later versions count
        worker.line = a_worker(worker_get_conv_template=said({"conv": other})).line
        await register(server, worker)
        await until(lambda: len(worker.asked_for("/worker_get_conv_template")) == 2)
        await listed(server, "tiny")
        await chat(client)

    assert worker.asked_for("/worker_generate_stream")[-1]["prompt"] == ("Sys.<end>\nUSER\nHello you<end>\nASSISTANT\n")


async def test_models_of_one_address_are_asked_for_by_their_names(ours: Ours) -> None:
    worker = a_worker(names=("tiny", "small"))
    async with worker.listening(), ours() as server, client_of(server) as client:
        await register(server, worker)
        await listed(server, "tiny", "small")
        for model in ("small", "tiny"):
            await chat(client, model=model)

    assert [params["model"] for params in worker.asked_for("/worker_generate_stream")] == ["small", "tiny"]


async def test_requests_of_other_front_ends_count(ours: Ours) -> None:
    worker = a_worker()
    async with worker.listening(), ours() as server:
        await register(server, worker)
        await listed(server, "tiny")
        await beat(server, worker, 7)

        (listed_worker,) = server.application.registry.serving("tiny")
        assert listed_worker.queue_length == 7


async def test_a_process_of_the_config_is_served_whenever_it_is_there(ours: Ours) -> None:
    worker = a_worker()
    worker.port = free_port()
    async with ours(f'upstreams = ["{worker.url}"]') as server:
        for _ in range(2):
            async with worker.listening(worker.port):
                await listed(server, "tiny")
            await refresh(server)
            await listed(server)


async def test_a_model_that_cannot_be_used_does_no_harm_to_others_of_its_address(ours: Ours) -> None:
    def details(asked: Asked) -> bytes:
        if asked.body["model"] == "broken":
            return said({}, "500 Internal Server Error")
        return said({"context_length": 1000})

    worker = a_worker(names=("broken", "tiny"), model_details=details)
    async with worker.listening(), ours() as server:
        await register(server, worker)
        await listed(server, "tiny")
        await refresh(server)
        await listed(server, "tiny")


async def test_a_wrong_address_is_named_in_one_line_with_what_to_do(
    ours: Ours, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = a_worker()
    nobody.port = free_port()
    async with ours() as server:
        await register(server, nobody)
        await until(lambda: any("--worker-address" in record.message for record in caplog.records))

    (line,) = (record.message for record in caplog.records if "--worker-address" in record.message)
    assert nobody.url in line


async def test_images_are_for_those_who_said_so(ours: Ours) -> None:
    worker = a_worker()
    async with worker.listening(), ours() as server, httpx.AsyncClient(base_url=server.url) as http:
        await register(server, worker, multimodal=True)
        await listed(server, "tiny")
        assert (await http.post("/list_multimodal_models")).json() == {"models": ["tiny"]}
        assert (await http.post("/list_language_models")).json() == {"models": ["echo"]}


async def test_a_controller_behind_us_serves_its_workers_models(ours: Ours) -> None:
    """It has no template, count or context to give; its workers have, and they are asked where it says they are."""
    worker = a_worker()
    async with worker.listening():
        lines: dict[str, Reply] = {
            "/worker_get_status": said({"model_names": ["tiny"], "speed": 1, "queue_length": 0}),
            "/get_worker_address": said({"address": worker.url}),
            "/worker_generate_stream": tuple(streamed({"text": "From below", "finish_reason": "stop", **COUNTS})),
        }
        controller = Actor(lambda asked: lines.get(asked.path, said({"detail": "Not Found"}, "404 Not Found")))
        async with controller.listening(), ours() as server, client_of(server) as client:
            await register(server, controller)
            await listed(server, "tiny")
            answer = await chat(client)

    assert answer.choices[0].message.content == "From below"
    assert controller.asked_for("/worker_generate_stream")[0]["prompt"] == "Sys. USER: Hello you ASSISTANT:"
    assert len(worker.asked_for("/count_token")) == 1


async def test_front_ends_and_controllers_above_us_reach_it_through_us(ours: Ours) -> None:
    """All of a worker's routes, for its models as for ours."""

    def embed(asked: Asked) -> bytes:
        if asked.method == "GET":
            return said({"detail": "Method Not Allowed"}, "405 Method Not Allowed")
        return said({"embedding": [[0.6, 0.8]], "token_num": 2})

    worker = a_worker(worker_get_embeddings=embed)
    async with (
        worker.listening(),
        ours(f'upstreams = ["{worker.url}"]') as server,
        httpx.AsyncClient(base_url=server.url) as http,
    ):
        await listed(server, "tiny")

        async def call(path: str, **body: Any) -> Any:
            return (await http.post(path, json={"model": "tiny"} | body)).json()

        conv = (await call("/worker_get_conv_template"))["conv"]
        prompt = render(Conversation(**conv), [Message(role="user", content="Hello you")])
        assert await call("/get_worker_address") == {"address": server.url}
        assert await call("/model_details") == {"context_length": 1000}
        assert (await call("/count_token", prompt=prompt))["count"] == 5
        assert (await call("/worker_generate", prompt=prompt, echo=False))["text"] == "Hi there"
        assert (await call("/worker_get_embeddings", input=["x"]))["token_num"] == 2

    assert worker.asked_for("/worker_generate_stream")[0]["prompt"] == "Sys. USER: Hello you ASSISTANT:"


async def test_a_controller_at_which_we_register_cannot_register_here(ours: Ours) -> None:
    controller = a_worker()
    async with controller.listening(), ours(f'controllers = ["{controller.url}"]') as server:
        refused = await register(server, controller)

    assert refused.status_code == 403
    assert "circle" in refused.json()["text"]


async def test_operators_see_it_among_the_workers(ours: Ours) -> None:
    worker = a_worker()
    async with worker.listening(), ours() as server, httpx.AsyncClient(base_url=server.url) as http:
        await register(server, worker)
        await listed(server, "tiny")
        cards = (await http.get("/cluster/workers")).json()["workers"]

    (card,) = (card for card in cards if card["models"] == ["tiny"])
    assert card["id"] == f"tiny@{worker.url}"
    assert (card["state"], card["context_length"]) == ("ready", 1000)
    assert card["notes"] == ["behind a worker of FastChat's"]


async def test_before_its_first_token_an_answer_moves_to_another_worker(ours: Ours) -> None:
    dying, living = a_worker(None), a_worker()
    in_turn = '[controller.policies]\ntiny = "round_robin"'
    async with living.listening(), ours(in_turn) as server, client_of(server) as client, dying.listening():
        for worker in (dying, living):
            await register(server, worker)
        await until(lambda: len(server.application.registry.serving("tiny")) == 2)
        answers = [await chat(client) for _ in range(2)]

    assert {answer.choices[0].message.content for answer in answers} == {"Hi there"}
    assert dying.asked_for("/worker_generate_stream")


async def test_a_drain_waits_for_what_is_under_way(ours: Ours) -> None:
    gate = asyncio.Event()
    worker = a_worker({"text": "Hi"}, gate, {"text": "Hi there", "finish_reason": "stop", **COUNTS})
    async with worker.listening(), ours() as server, client_of(server) as client:
        await register(server, worker)
        await listed(server, "tiny")
        async with anyio.create_task_group() as tasks:
            stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
            first = await anext(aiter(stream))
            tasks.start_soon(server.drain)
            await until(lambda: server.application.registry.serving("tiny")[0].state.value == "draining")
            gate.set()
            rest = [chunk.choices[0].delta.content or "" async for chunk in stream]

    assert (first.choices[0].delta.content or "") + "".join(rest) == "Hi there"


async def test_a_stop_ends_what_is_under_way_with_an_error(ours: Ours) -> None:
    worker = a_worker({"text": "Hi"}, asyncio.Event())
    async with worker.listening(), ours() as server, client_of(server) as client:
        await register(server, worker)
        await listed(server, "tiny")
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        await anext(aiter(stream))
        server.application.expel()
        with pytest.raises(openai.APIError, match="shutting down"):
            _ = [chunk async for chunk in stream]


# ------------------------------------------------------------------------------------------------ answers


async def answering(ours: Ours, *messages: Any, **lines: Any) -> tuple[list[str], Actor]:
    """The pieces of a streamed answer that a worker gives with `messages`."""
    worker = a_worker(*messages, **lines)
    async with worker.listening(), ours(f'upstreams = ["{worker.url}"]') as server, client_of(server) as client:
        await listed(server, "tiny")
        return await events(client, max_tokens=9), worker


async def test_only_what_is_new_is_sent(ours: Ours) -> None:
    gate = asyncio.Event()
    worker = a_worker({"text": "a"}, gate, {"text": "ab"}, {"text": "abc", "finish_reason": "length", **COUNTS})
    async with worker.listening(), ours(f'upstreams = ["{worker.url}"]') as server, client_of(server) as client:
        await listed(server, "tiny")
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True, max_tokens=9)
        pieces = []
        async for chunk in stream:
            if text := chunk.choices[0].delta.content:
                pieces.append(text)
                gate.set()
            last = chunk.choices[0].finish_reason

    assert "".join(pieces) == "abc"
    assert pieces[0] == "a"
    assert last == "length"


async def test_characters_that_are_not_complete_wait(ours: Ours) -> None:
    pieces, _ = await answering(ours, {"text": "\ufffd\ufffd"}, {"text": "é!", "finish_reason": "stop", **COUNTS})

    assert pieces == ["é!"]


@pytest.mark.parametrize("usage", [{}, {"usage": None}, {"usage": {}}, {"usage": {"prompt_tokens": "?"}}])
async def test_usage_that_is_missing_is_counted(ours: Ours, usage: dict[str, Any]) -> None:
    worker = a_worker({"text": "one two three", "finish_reason": "stop", **usage})
    async with worker.listening(), ours(f'upstreams = ["{worker.url}"]') as server, client_of(server) as client:
        await listed(server, "tiny")
        answer = await client.completions.create(model="tiny", prompt="zero ", max_tokens=9)

    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (1, 3)  # type: ignore[union-attr]


async def test_a_finish_reason_that_never_comes_means_stop(ours: Ours) -> None:
    worker = a_worker({"text": "Hi", **COUNTS})
    async with worker.listening(), ours(f'upstreams = ["{worker.url}"]') as server, client_of(server) as client:
        await listed(server, "tiny")
        assert (await chat(client)).choices[0].finish_reason == "stop"


async def test_stops_of_the_template_go_along(ours: Ours) -> None:
    conv = VICUNA | {"stop_str": ["###", "END"], "stop_token_ids": [7]}
    _, worker = await answering(ours, worker_get_conv_template=said({"conv": conv}))

    (params,) = worker.asked_for("/worker_generate_stream")
    assert (params["stop"], params["stop_token_ids"]) == (["###", "END"], [7])


async def test_a_stop_string_that_the_worker_overlooks_is_found(ours: Ours) -> None:
    """It looks for the last one in what came since its last message."""
    worker = a_worker({"text": "a. b"}, {"text": "a. b. c", "finish_reason": "stop", **COUNTS})
    async with worker.listening(), ours(f'upstreams = ["{worker.url}"]') as server, client_of(server) as client:
        await listed(server, "tiny")
        answer = await chat(client, stop=["."])

    assert answer.choices[0].message.content == "a"


async def test_without_a_limit_there_is_as_much_as_the_context_has_room_for(ours: Ours) -> None:
    worker = a_worker()
    async with worker.listening(), ours(f'upstreams = ["{worker.url}"]') as server, client_of(server) as client:
        await listed(server, "tiny")
        await chat(client)

    (params,) = worker.asked_for("/worker_generate_stream")
    assert params["max_new_tokens"] == 1000 - 1 - 5  # one is kept free, five words are in the prompt


async def test_a_prompt_that_would_be_cut_is_refused(ours: Ours) -> None:
    worker = a_worker()
    async with worker.listening(), ours(f'upstreams = ["{worker.url}"]') as server, client_of(server) as client:
        await listed(server, "tiny")
        with pytest.raises(openai.BadRequestError) as refused:
            await chat(client, max_tokens=995)

    assert refused.value.code == "context_length_exceeded"
    assert worker.asked_for("/worker_generate_stream") == []


@pytest.mark.parametrize(
    ("code", "status", "ours_"),
    [
        (40303, 400, "context_length_exceeded"),
        (40302, 400, None),
        (50002, 503, "out_of_memory"),
        (50005, 503, "no_worker"),
        (50006, 504, "deadline_exceeded"),
        (50001, 500, "engine_failed"),
        (77, 500, "engine_failed"),
    ],
)
async def test_a_failure_of_the_worker_is_an_error_of_ours(
    ours: Ours, code: int, status: int, ours_: str | None
) -> None:
    secret = f"{NETWORK_ERROR}\n\n(/home/me/model at 10.1.2.3)"
    worker = a_worker({"text": secret, "error_code": code})
    async with worker.listening(), ours(f'upstreams = ["{worker.url}"]') as server, client_of(server) as client:
        await listed(server, "tiny")
        with pytest.raises(openai.APIStatusError) as refused:
            await chat(client)

    assert (refused.value.status_code, refused.value.code) == (status, ours_)
    assert "NETWORK" not in str(refused.value)
    assert "10.1.2.3" not in str(refused.value)


@pytest.mark.parametrize(
    "rest",
    [
        [{"text": NETWORK_ERROR, "error_code": 50001}],
        [None],
        [b'{"text": "half', None],
        [b"no JSON\0"],
        [{"text": "Hi", "finish_reason": "abort"}],
    ],
)
async def test_a_stream_that_fails_ends_with_one_error(ours: Ours, rest: list[Any]) -> None:
    worker = a_worker({"text": "Hi"}, *rest)
    async with worker.listening(), ours(f'upstreams = ["{worker.url}"]') as server, client_of(server) as client:
        await listed(server, "tiny")
        with pytest.raises(openai.APIError) as failed:
            await events(client)

    assert "NETWORK" not in str(failed.value)


async def test_an_answer_that_ends_before_it_began_is_a_failure(ours: Ours) -> None:
    """B1: 200, no byte, and the end: what FastChat's worker makes of a request that it cannot read."""
    worker = Actor(replies("tiny", worker_generate_stream=lambda _: streamed()))
    async with worker.listening(), ours(f'upstreams = ["{worker.url}"]') as server, client_of(server) as client:
        await listed(server, "tiny")
        with pytest.raises(openai.InternalServerError):
            await chat(client)


async def test_who_leaves_ends_the_workers_request(ours: Ours) -> None:
    never = asyncio.Event()
    worker = a_worker({"text": "Hi"}, never)
    async with worker.listening(), ours(f'upstreams = ["{worker.url}"]') as server, client_of(server) as client:
        await listed(server, "tiny")
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        await anext(aiter(stream))
        worker.gone.clear()
        await stream.close()
        with anyio.fail_after(5):
            await worker.gone.wait()
        (listed_worker,) = server.application.registry.serving("tiny")
        await until(lambda: listed_worker.queue_length == 0)


async def test_vectors_are_ours_where_the_worker_makes_some(ours: Ours) -> None:
    def embed(asked: Any) -> bytes:
        if asked.method == "GET":
            return said({"detail": "Method Not Allowed"}, "405 Method Not Allowed")
        return said({"embedding": [[0.6, 0.8] for _ in asked.body["input"]], "token_num": 4})

    worker = a_worker(worker_get_embeddings=embed)
    async with worker.listening(), ours(f'upstreams = ["{worker.url}"]') as server, client_of(server) as client:
        await listed(server, "tiny")
        found = await client.embeddings.create(model="tiny", input=["to be", "or not"])

    assert [pytest.approx(item.embedding) for item in found.data] == [[0.6, 0.8], [0.6, 0.8]]
    assert found.usage.prompt_tokens == 4


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (said({"embedding": [[0.6, 0.8]], "token_num": 4}), 500),
        (said({"text": "no", "error_code": 50001}), 500),
        (said({"what": "?"}), 500),
    ],
)
async def test_vectors_that_are_none_are_a_failure(ours: Ours, reply: bytes, status: int) -> None:
    worker = a_worker(worker_get_embeddings=reply)
    async with worker.listening(), ours(f'upstreams = ["{worker.url}"]') as server, client_of(server) as client:
        await listed(server, "tiny")
        with pytest.raises(openai.APIStatusError) as refused:
            await client.embeddings.create(model="tiny", input=["to be", "or not"])

    assert refused.value.status_code == status


async def test_a_worker_without_that_route_makes_no_vectors(ours: Ours) -> None:
    worker = a_worker(worker_get_embeddings=said({"detail": "Not Found"}, "404 Not Found"))
    async with worker.listening(), ours(f'upstreams = ["{worker.url}"]') as server, client_of(server) as client:
        await listed(server, "tiny")
        with pytest.raises(openai.BadRequestError) as refused:
            await client.embeddings.create(model="tiny", input="to be")

    assert refused.value.code == "unsupported"


@pytest.mark.parametrize(
    "asked",
    [
        {"presence_penalty": 1},
        {"logprobs": True},
        {"extra_body": {"min_p": 0.1}},
        {"extra_body": {"repetition_penalty": 0.9}},
        {"messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": "y", "tool_call_id": "1"}]},
        {"response_format": {"type": "json_object"}},
    ],
)
async def test_what_the_worker_would_ignore_is_refused(ours: Ours, asked: dict[str, Any]) -> None:
    worker = a_worker()
    async with worker.listening(), ours(f'upstreams = ["{worker.url}"]') as server, client_of(server) as client:
        await listed(server, "tiny")
        with pytest.raises(openai.BadRequestError) as refused:
            await chat(client, **asked)

    assert refused.value.code == "unsupported"


@pytest.mark.parametrize("conv", [VICUNA | {"sep_style": 99}, {"what": "?"}, VICUNA | {"sep_style": None}])
async def test_a_template_that_cannot_be_used_leaves_texts(ours: Ours, conv: Any) -> None:
    worker = a_worker(worker_get_conv_template=said({"conv": conv}))
    async with worker.listening(), ours(f'upstreams = ["{worker.url}"]') as server, client_of(server) as client:
        await listed(server, "tiny")
        with pytest.raises(openai.BadRequestError):
            await chat(client)
        assert (await client.completions.create(model="tiny", prompt="x")).choices[0].text == "Hi there"
