"""A server of ours with FastChat's side on, and processes that act as FastChat's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import pytest
from openai import AsyncOpenAI

from fastchat_serve.server import HttpServer
from tests.conftest import Serving

Ours = Callable[..., AbstractAsyncContextManager[HttpServer]]

CONFIG = """
[controller]
[api]
[fastchat]
enabled = true
{fastchat}
[[worker]]
backend = "echo"
names = ["echo"]
options = {{ split = "byte" }}
"""


@pytest.fixture(scope="session")
def ours(serving: Serving) -> Ours:
    """``async with ours(keys of [fastchat]) as server``."""

    @asynccontextmanager
    async def ours(fastchat: str = "") -> AsyncIterator[HttpServer]:
        async with serving(CONFIG.format(fastchat=fastchat)) as server:
            yield server

    return ours


def client_of(server: HttpServer) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=20)


async def until(condition: Callable[[], bool]) -> None:
    """For what nobody announces: bounded, and without a guess at how long it takes."""
    with anyio.fail_after(20):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def listed(server: HttpServer, *models: str) -> None:
    """Return once the server lists these models beside its own, and no others."""
    await until(lambda: server.application.registry.models == tuple(sorted(("echo", *models))))
