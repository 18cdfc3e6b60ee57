"""A server that serves FastChat's routes, and a client that calls them as FastChat's processes do."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from fastchat_serve.server import HttpServer

FASTCHAT = """
[controller]
[api]
[fastchat]
enabled = true
[[worker]]
backend = "echo"
names = ["echo"]
concurrency = 4
options = { split = "byte" }
"""


@pytest.fixture(scope="module")
def config() -> str:
    return FASTCHAT


class FastChatClient:
    """Calls a server's FastChat routes."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON that answers it."""
        reply = await self.http.post(path, json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    async def stream(self, **params: Any) -> list[dict[str, Any]]:
        """The messages of ``/worker_generate_stream``."""
        reply = await self.http.post("/worker_generate_stream", json=params)
        assert reply.status_code == 200
        *messages, rest = reply.content.split(b"\0")
        assert rest == b""
        return [json.loads(message) for message in messages]


@pytest.fixture
async def fastchat(server: HttpServer) -> AsyncIterator[FastChatClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=20) as http:
        yield FastChatClient(http)
