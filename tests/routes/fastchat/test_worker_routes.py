"""W4-W10: our workers as FastChat's front ends and controllers call them."""

from __future__ import annotations

import base64
from array import array

import anyio
import httpx
import pytest

from fastchat_serve.fastchat.conversation import render
from fastchat_serve.protocol.fastchat import NETWORK_ERROR, Conversation
from fastchat_serve.requests import Message
from fastchat_serve.server import HttpServer
from tests.routes.fastchat.conftest import FastChatClient

pytestmark = pytest.mark.anyio


async def test_a_stream_has_messages_with_all_text_so_far(fastchat: FastChatClient) -> None:
    messages = await fastchat.stream(model="echo", prompt="to be", temperature=0, echo=False)

    assert [message["text"] for message in messages] == ["t", "to", "to ", "to b", "to be", "to be"]
    assert [message["finish_reason"] for message in messages] == [None] * 5 + ["stop"]
    assert {message["error_code"] for message in messages} == {0}
    assert messages[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}


async def test_its_bytes_are_those_of_fastchat(fastchat: FastChatClient) -> None:
    """ASCII, a space after colons and commas, a NUL after each message, chunked, and no content type."""
    params = {"model": "echo", "prompt": "é", "echo": False}
    reply = await fastchat.http.post("/worker_generate_stream", json=params)

    assert reply.content == (
        rb'{"text": "\u00e9", "error_code": 0, "finish_reason": null, "logprobs": null}' + b"\0"
        rb'{"text": "\u00e9", "error_code": 0, '
        rb'"usage": {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}, '
        rb'"finish_reason": "stop", "logprobs": null}' + b"\0"
    )
    assert "content-type" not in reply.headers


async def test_without_a_stream_it_is_the_last_message(fastchat: FastChatClient) -> None:
    said = await fastchat.call("/worker_generate", {"model": "echo", "prompt": "to be", "max_new_tokens": 2})

    assert said == {
        "text": "to beto",  # `echo` is on by default
        "error_code": 0,
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
        "finish_reason": "length",
        "logprobs": None,
    }


async def test_what_is_null_is_not_given(fastchat: FastChatClient) -> None:
    """B1: one such request costs FastChat's own worker a slot for ever."""
    nulls = dict.fromkeys(("temperature", "top_p", "top_k", "max_new_tokens", "stop", "stop_token_ids", "logprobs"))

    assert (await fastchat.stream(model="echo", prompt="a", echo=False, **nulls))[-1]["text"] == "a"


async def test_logprobs_are_there_for_all_tokens_so_far(fastchat: FastChatClient) -> None:
    last = (await fastchat.stream(model="echo", prompt="ab", echo=True, logprobs=1))[-1]

    assert last["text"] == "abab"
    assert last["logprobs"]["tokens"] == ["a", "b", "a", "b"]
    assert last["logprobs"]["text_offset"] == [0, 1, 2, 3]
    assert last["logprobs"]["token_logprobs"][0] is None
    assert last["logprobs"]["top_logprobs"] == [{}] * 4


async def test_stop_strings_end_it(fastchat: FastChatClient) -> None:
    last = (await fastchat.stream(model="echo", prompt="to be or not", echo=False, stop=" or"))[-1]

    assert (last["text"], last["finish_reason"]) == ("to be", "stop")


async def test_more_tokens_than_there_is_room_for_means_as_many_as_there_is(fastchat: FastChatClient) -> None:
    """FastChat's chat page asks for 1024 whatever the model's context."""
    params = {"model": "echo", "prompt": "ab", "max_new_tokens": 1_000_000, "echo": False}

    assert (await fastchat.stream(**params))[-1]["text"] == "ab"


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"model": "nope", "prompt": "x"}, 40301),
        ({"model": "echo", "prompt": "x" * 131_072}, 40303),
        ({"model": "echo", "prompt": "x", "max_new_tokens": 0}, 40302),
        ({"model": "echo", "prompt": "x", "temperature": 3}, 40302),
        ({"model": "echo", "prompt": "x", "images": ["aGVsbG8="]}, 40302),
        ({"model": "echo", "prompt": "x", "use_beam_search": True}, 40302),
        ({"model": "echo"}, 40302),
    ],
)
@pytest.mark.parametrize("path", ["/worker_generate_stream", "/worker_generate"])
async def test_a_failure_is_a_message_with_a_number(
    fastchat: FastChatClient, params: dict[str, object], code: int, path: str
) -> None:
    reply = await fastchat.http.post(path, json=params)
    failure = reply.content.removesuffix(b"\0")

    assert reply.status_code == 200
    assert httpx.Response(200, content=failure).json()["error_code"] == code
    assert httpx.Response(200, content=failure).json()["text"].startswith(NETWORK_ERROR)


async def test_who_leaves_frees_the_slot(fastchat: FastChatClient, server: HttpServer) -> None:
    (worker,) = server.application.workers
    params = {"model": "echo", "prompt": "x" * 100_000, "max_new_tokens": 100_000}
    for path in ("/worker_generate_stream", "/worker_generate"):
        with anyio.move_on_after(0.05):
            await fastchat.http.post(path, json=params)
        with anyio.fail_after(5):
            while worker.queue_length:
                await anyio.lowlevel.checkpoint()


async def test_it_says_how_busy_it_is(fastchat: FastChatClient) -> None:
    status = await fastchat.call("/worker_get_status")

    assert status == {"model_names": ["echo"], "speed": 1, "queue_length": 0}


async def test_tokens_are_counted(fastchat: FastChatClient) -> None:
    assert await fastchat.call("/count_token", {"model": "echo", "prompt": "to be"}) == {"count": 5, "error_code": 0}
    assert await fastchat.call("/count_token", {"prompt": "to be"}) == {"count": 5, "error_code": 0}


async def test_the_context_is_told(fastchat: FastChatClient) -> None:
    assert await fastchat.call("/model_details", {"model": "echo"}) == {"context_length": 131_072}


async def test_a_front_ends_conversation_is_rendered_by_the_models_own_template(fastchat: FastChatClient) -> None:
    """What the front end makes of our template carries the turns, and the engine is given those."""
    conv = (await fastchat.call("/worker_get_conv_template", {"model": "echo"}))["conv"]
    prompt = render(
        Conversation(**conv), [Message(role="system", content="Be brief."), Message(role="user", content="Hi there")]
    )

    last = (await fastchat.stream(model="echo", prompt=prompt, echo=False))[-1]

    assert last["text"] == "Hi there"  # the echo engine says what the last user said
    counted = (await fastchat.call("/count_token", {"model": "echo", "prompt": prompt}))["count"]
    assert counted == last["usage"]["prompt_tokens"]


async def test_embeddings_come_as_numbers_or_as_bytes(fastchat: FastChatClient) -> None:
    texts = {"model": "echo", "input": ["to", "be"]}

    numbers = await fastchat.call("/worker_get_embeddings", texts)
    encoded = await fastchat.call("/worker_get_embeddings", texts | {"encoding_format": "base64"})

    assert numbers["token_num"] == 4
    assert [array("f", base64.b64decode(row)).tolist() for row in encoded["embedding"]] == numbers["embedding"]


async def test_embeddings_that_cannot_be_made_are_a_failure(fastchat: FastChatClient) -> None:
    none = await fastchat.call("/worker_get_embeddings", {"model": "echo", "input": []})
    unknown = await fastchat.call("/worker_get_embeddings", {"model": "nope", "input": ["x"]})

    assert none["error_code"] == 40302
    assert unknown["error_code"] == 40301


@pytest.mark.parametrize("path", ["/count_token", "/model_details", "/worker_get_conv_template"])
async def test_an_unknown_model_is_refused_with_a_status(fastchat: FastChatClient, path: str) -> None:
    reply = await fastchat.http.post(path, json={"model": "nope", "prompt": "x"})

    assert reply.status_code == 404
    assert reply.json()["error_code"] == 40301
