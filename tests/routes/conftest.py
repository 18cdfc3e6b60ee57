"""One server per module: most of these tests only talk to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from openai import AsyncOpenAI

from fastchat_serve.server import HttpServer
from tests.conftest import Serving


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def config() -> str:
    """What `server` runs; a module may say otherwise."""
    return """
[controller]
[api]
[limits]
max_n = 8
[[worker]]
backend = "echo"
names = ["echo", "org/echo"]
concurrency = 64
"""


@pytest.fixture(scope="module")
async def server(serving: Serving, config: str) -> AsyncIterator[HttpServer]:
    async with serving(config) as server:
        yield server


@pytest.fixture
async def client(server: HttpServer) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's own client, as its users have it, but that it does not try again."""
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=20) as client:
        yield client
