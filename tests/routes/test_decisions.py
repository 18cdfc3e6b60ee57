"""``GET /cluster/decisions/{request_id}``: asked with the id that a reply bears."""

from __future__ import annotations

import httpx
import pytest

from fastchat_serve.server import HttpServer

pytestmark = pytest.mark.anyio

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def config() -> str:
    worker = '[[worker]]\nbackend = "echo"\nnames = ["echo"]\n'
    return f'[controller]\npolicy = "round_robin"\n[api]\n{worker}{worker}'


async def test_a_reply_s_id_leads_to_the_decision(server: HttpServer) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        chosen = []
        for _ in range(2):
            reply = await client.post("/v1/chat/completions", json=CHAT)
            asked = await client.get(f"/cluster/decisions/{reply.headers['x-request-id']}")
            (decision,) = asked.json()["decisions"]
            assert decision["model"] == "echo"
            assert decision["policy"] == "round_robin"
            assert len(decision["candidates"]) == 2
            chosen.append(decision["chosen"])
    assert len(set(chosen)) == 2


async def test_an_id_that_the_client_chose_is_found_and_may_hold_slashes(server: HttpServer) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        body = {**CHAT, "n": 3}
        await client.post("/v1/chat/completions", json=body, headers={"x-request-id": "team/a:1"})
        asked = await client.get("/cluster/decisions/team/a:1")
    assert len(asked.json()["decisions"]) == 3


async def test_what_nobody_remembers_is_not_found(server: HttpServer) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        reply = await client.get("/cluster/decisions/nothing")
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "not_found"
