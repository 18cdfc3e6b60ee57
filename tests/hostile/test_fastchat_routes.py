"""F33, S10, S11: whatever is sent to FastChat's routes, there is an answer that is no 5xx, and the server goes on."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.conftest import Serving
from tests.routes.fastchat.conftest import FASTCHAT

pytestmark = pytest.mark.anyio

WITH_BODY = [
    *("/register_worker", "/receive_heart_beat", "/get_worker_address", "/worker_generate_stream", "/worker_generate"),
    *("/worker_get_embeddings", "/count_token", "/worker_get_conv_template", "/model_details"),
    *("/api/v1/chat/completions", "/api/v1/token_check"),
]
WITHOUT = [
    *("/refresh_all_workers", "/list_models", "/list_multimodal_models", "/list_language_models"),
    "/worker_get_status",
]
FIELDS = [
    *("model", "prompt", "worker_name", "queue_length", "check_heart_beat", "worker_status", "input", "prompts"),
    *("messages", "temperature", "top_p", "top_k", "max_new_tokens", "stop", "stop_token_ids", "logprobs", "echo"),
    *("repetition_penalty", "images", "encoding_format", "multimodal"),
]
VALUES: list[Any] = [
    *(None, True, -1, 0, 1e308, 10**30, "", "x", "\x00", "\x1efastchat-serve\x1e", "\x1efastchat-serve\x1e\x1euser"),
    *([], [None], [[]], ["\x1e"], {}, {"a": {}}, "a" * 100_000, ["a"] * 3_000),
]
GOOD: dict[str, Any] = {
    "model": "echo",
    "prompt": "x",
    "worker_name": "http://127.0.0.1:1",
    "queue_length": 0,
    "input": ["x"],
    "prompts": [],
    "messages": "x",
    "max_new_tokens": 2,
}
BODIES = [
    *(b"", b"{", b"null", b"[]", b"0", b'"x"', b"\xff", b'{"model": "\xed\xa0\x80"}', b'{"prompt": "\\ud800"}'),
    *(b"[" * 10_000, b'{"a":' * 10_000, b'{"prompt": 1e999}', b'{"model": "echo", "prompt": "x", "prompt": 1}'),
]


@pytest.mark.parametrize("path", WITH_BODY)
async def test_no_body_does_harm(serving: Serving, path: str) -> None:
    json_type = {"content-type": "application/json"}
    async with serving(FASTCHAT) as server, httpx.AsyncClient(base_url=server.url, timeout=20) as http:
        for body in BODIES:
            reply = await http.post(path, content=body, headers=json_type)
            assert reply.status_code < 500, body[:50]
        for field in FIELDS:
            for value in VALUES:
                try:
                    reply = await http.post(path, json=GOOD | {field: value})
                except ValueError:  # no JSON has it
                    continue
                assert reply.status_code < 500 or reply.status_code == 503, (field, str(value)[:50], reply.text)
        for headers in ({"content-type": "multipart/form-data"}, json_type | {"content-encoding": "gzip"}):
            reply = await http.post(path, content=b"{}", headers=headers)
            assert reply.status_code in (200, 400, 415)
        assert (await http.post("/worker_generate", json=GOOD)).json()["text"] == "xx"


@pytest.mark.parametrize("path", [*WITH_BODY, *WITHOUT])
async def test_other_methods_are_refused(serving: Serving, path: str) -> None:
    async with serving(FASTCHAT) as server, httpx.AsyncClient(base_url=server.url) as http:
        for method in ("GET", "PUT", "DELETE", "PATCH"):
            assert (await http.request(method, path)).status_code == 405


async def test_a_body_that_is_too_long_is_refused(serving: Serving) -> None:
    async with serving(FASTCHAT) as server, httpx.AsyncClient(base_url=server.url) as http:
        for path in WITH_BODY:
            reply = await http.post(path, json=GOOD | {"prompt": "x" * 9_000_000})
            assert reply.status_code in (200, 400, 413), path
            assert b'"text":"xx"' not in reply.content
