"""C1-C10: the controller as FastChat's workers and front ends call it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from fastchat_serve.server import HttpServer
from tests.conftest import Serving
from tests.routes.fastchat.conftest import FASTCHAT, FastChatClient

pytestmark = pytest.mark.anyio


async def test_models_are_listed(fastchat: FastChatClient) -> None:
    assert await fastchat.call("/list_models") == {"models": ["echo"]}
    assert await fastchat.call("/list_language_models") == {"models": ["echo"]}
    assert await fastchat.call("/list_multimodal_models") == {"models": []}


async def test_front_ends_are_sent_to_where_they_are_already(fastchat: FastChatClient, server: HttpServer) -> None:
    assert await fastchat.call("/get_worker_address", {"model": "echo"}) == {"address": server.url}
    assert await fastchat.call("/get_worker_address", {"model": "nope"}) == {"address": ""}


async def test_a_worker_that_is_not_known_is_told_so(fastchat: FastChatClient) -> None:
    beat = {"worker_name": "http://127.0.0.1:1", "queue_length": 0}

    assert await fastchat.call("/receive_heart_beat", beat) == {"exist": False}


async def test_a_refresh_keeps_what_works(fastchat: FastChatClient) -> None:
    assert await fastchat.call("/refresh_all_workers") is None
    assert await fastchat.call("/list_models") == {"models": ["echo"]}


async def test_it_says_that_it_is_there(fastchat: FastChatClient) -> None:
    reply = await fastchat.http.get("/test_connection")

    assert reply.json() == "success"


@pytest.mark.parametrize(
    "body",
    [
        {"x": 1},
        {"worker_name": "ftp://127.0.0.1", "check_heart_beat": True, "worker_status": None},
        {"worker_name": "http://127.0.0.1:0", "check_heart_beat": True, "worker_status": None},
    ],
)
async def test_a_registration_that_is_none_is_refused_with_a_status(fastchat: FastChatClient, body: Any) -> None:
    """Status 200 would have its worker believe that it is registered."""
    reply = await fastchat.http.post("/register_worker", json=body)

    assert reply.status_code == 400
    assert reply.json()["error_code"] == 40302


async def test_s1_an_address_of_another_host_is_refused_before_it_is_dialled(fastchat: FastChatClient) -> None:
    body = {"worker_name": "http://192.0.2.1:21002", "check_heart_beat": True, "worker_status": None}
    reply = await fastchat.http.post("/register_worker", json=body)

    assert reply.status_code == 403
    assert "--worker-address" in reply.json()["text"]


PEERS_ONLY = ["/register_worker", "/receive_heart_beat"]
READING = ["/list_models", "/get_worker_address", "/worker_get_status", "/refresh_all_workers", "/count_token"]
KEYED = FASTCHAT.replace("[api]", '[api]\nkeys = ["sk-secret"]')


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "via", "origin"])
@pytest.mark.parametrize("path", [*PEERS_ONLY, *READING])
async def test_s1_what_a_proxy_or_a_page_passes_on_is_from_no_peer(serving: Serving, path: str, header: str) -> None:
    async with serving(KEYED) as server, httpx.AsyncClient(base_url=server.url) as http:
        reply = await http.post(path, json={}, headers={header: "198.51.100.7"})

    assert reply.status_code == (403 if path in PEERS_ONLY else 401)


async def test_s1_outside_of_the_networks_nobody_registers_and_a_key_is_needed(serving: Serving) -> None:
    elsewhere = KEYED.replace("enabled = true", 'enabled = true\nnetworks = ["192.0.2.0/24"]')
    key = {"authorization": "Bearer sk-secret"}
    async with serving(elsewhere) as server, httpx.AsyncClient(base_url=server.url) as http:
        for path in PEERS_ONLY:
            assert (await http.post(path, json={}, headers=key)).status_code == 403
        for path in READING:
            assert (await http.post(path, json={"model": "echo", "prompt": "x"})).status_code == 401
            assert (await http.post(path, json={"model": "echo", "prompt": "x"}, headers=key)).status_code == 200


async def test_without_the_table_there_are_no_such_routes(serving: Serving) -> None:
    plain = FASTCHAT.replace("enabled = true", "")
    async with serving(plain) as server, httpx.AsyncClient(base_url=server.url) as http:
        for path in (*PEERS_ONLY, *READING, "/api/v1/chat/completions"):
            assert (await http.post(path, json={})).status_code == 404
