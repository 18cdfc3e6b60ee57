"""The header with which an operator chooses the policy of one request, where the config lets it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.conftest import Serving

pytestmark = pytest.mark.anyio

WORKER = '[[worker]]\nbackend = "echo"\nnames = ["echo"]\n'
CONFIG = "[controller]\n[api]\npolicy_header = {}\n" + WORKER * 2
BODIES = {
    "/v1/chat/completions": {"model": "echo", "messages": [{"role": "user", "content": "a"}]},
    "/v1/completions": {"model": "echo", "prompt": "a"},
}


async def chosen_by(client: httpx.AsyncClient, path: str, policy: str) -> str:
    """The policy that chose, of a request with this header."""
    reply = await client.post(path, json=BODIES[path], headers={"x-dispatch-policy": policy})
    assert reply.status_code == 200
    told = await client.get(f"/cluster/decisions/{reply.headers['x-request-id']}")
    name: Any = told.json()["decisions"][0]["policy"]
    return str(name)


@pytest.mark.parametrize("path", BODIES)
async def test_where_it_may_a_request_names_its_policy(serving: Serving, path: str) -> None:
    async with serving(CONFIG.format("true")) as server, httpx.AsyncClient(base_url=server.url) as client:
        assert await chosen_by(client, path, "round_robin") == "round_robin"
        assert await chosen_by(client, path, "session") == "session"
        assert await chosen_by(client, path, "") == "shortest_queue"


@pytest.mark.parametrize("path", BODIES)
async def test_a_policy_that_there_is_not_is_refused_with_those_that_there_are(serving: Serving, path: str) -> None:
    async with serving(CONFIG.format("true")) as server, httpx.AsyncClient(base_url=server.url) as client:
        reply = await client.post(path, json=BODIES[path], headers={"x-dispatch-policy": "best"})
        assert reply.status_code == 400
        assert "'best' here; known are: least_work, lottery" in reply.json()["error"]["message"]


async def test_elsewhere_the_header_is_nothing(serving: Serving) -> None:
    async with serving(CONFIG.format("false")) as server, httpx.AsyncClient(base_url=server.url) as client:
        for policy in ("round_robin", "best"):
            assert await chosen_by(client, "/v1/completions", policy) == "shortest_queue"
