"""/api/v1: behind the keys, with FastChat's refusals."""

from __future__ import annotations

import httpx
import pytest

from tests.conftest import Serving
from tests.routes.fastchat.conftest import FASTCHAT, FastChatClient

pytestmark = pytest.mark.anyio

KEYED = FASTCHAT.replace("[api]", '[api]\nkeys = ["sk-secret"]')
CHAT = "/api/v1/chat/completions"


async def test_a_chat_is_answered(fastchat: FastChatClient) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    said = await fastchat.call(CHAT, {"model": "echo", "messages": messages, "repetition_penalty": 1.1})

    assert said["choices"][0]["message"]["content"] == "Hi"


async def test_a_text_in_place_of_messages_is_continued(fastchat: FastChatClient) -> None:
    said = await fastchat.call(CHAT, {"model": "echo", "messages": "to be", "max_tokens": 2})

    assert said["choices"][0]["message"]["content"] == "to"
    assert said["usage"]["prompt_tokens"] == 5


async def test_a_stream_ends_with_done(fastchat: FastChatClient) -> None:
    reply = await fastchat.http.post(CHAT, json={"model": "echo", "messages": "ab", "stream": True})

    assert reply.text.endswith("data: [DONE]\n\n")
    assert '"content":"a"' in reply.text


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model": "nope"}, 40301),
        ({"messages": "x" * 131_073}, 40303),
        ({"temperature": 3}, 40302),
        ({"messages": []}, 40302),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_has_fastchats_shape(
    fastchat: FastChatClient, change: dict[str, object], code: int, stream: bool
) -> None:
    reply = await fastchat.http.post(CHAT, json={"model": "echo", "messages": "x", "stream": stream} | change)

    assert reply.status_code == 400
    assert reply.json().keys() == {"object", "message", "code"}
    assert (reply.json()["object"], reply.json()["code"]) == ("error", code)


async def test_an_error_within_a_stream_is_a_message_of_fastchats(serving: Serving) -> None:
    failing = FASTCHAT.replace('split = "byte"', 'split = "byte", fail_at = 1')
    async with serving(failing) as server, httpx.AsyncClient(base_url=server.url) as http:
        reply = await http.post(CHAT, json={"model": "echo", "messages": "abc", "stream": True})

    *_, error, done, rest = reply.text.split("\n\n")
    assert '"error_code":50001' in error
    assert (done, rest) == ("data: [DONE]", "")


async def test_whether_prompts_fit_is_told(fastchat: FastChatClient) -> None:
    prompts = [
        {"model": "echo", "prompt": "to be", "max_tokens": 10},
        {"model": "echo", "prompt": "to be", "max_tokens": 131_068},
    ]
    said = await fastchat.call("/api/v1/token_check", {"prompts": prompts})

    assert said == {
        "prompts": [
            {"fits": True, "tokenCount": 5, "contextLength": 131_072},
            {"fits": False, "tokenCount": 5, "contextLength": 131_072},
        ]
    }


async def test_tokens_of_an_unknown_model_are_not_counted(fastchat: FastChatClient) -> None:
    body = {"prompts": [{"model": "nope", "prompt": "x", "max_tokens": 1}]}
    reply = await fastchat.http.post("/api/v1/token_check", json=body)

    assert (reply.status_code, reply.json()["code"]) == (400, 40301)


@pytest.mark.parametrize("path", [CHAT, "/api/v1/token_check"])
async def test_b3_without_a_key_nothing_is_done(serving: Serving, path: str) -> None:
    """FastChat's own server generates for everybody here; and to be a peer is no key."""
    async with serving(KEYED) as server, httpx.AsyncClient(base_url=server.url) as http:
        refused = await http.post(path, json={"model": "echo", "messages": "x", "prompts": []})
        key = {"authorization": "Bearer sk-secret"}
        admitted = await http.post(path, json={"model": "echo", "messages": "x", "prompts": []}, headers=key)

    assert refused.status_code == 401
    assert admitted.status_code == 200
