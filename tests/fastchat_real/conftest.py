"""Tests with FastChat itself: collected where it is installed, as by ``nox -s fastchat``, and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec

import anyio
import pytest
from openai import AsyncOpenAI

from fastchat_serve.server import HttpServer
from tests.conftest import Serving

if find_spec("fastchat") is None:
    collect_ignore_glob = ["test_*.py"]

Ours = Callable[..., AbstractAsyncContextManager[HttpServer]]

CONFIG = """
[controller]
[api]
[fastchat]
enabled = true
{fastchat}
[[worker]]
backend = "echo"
names = ["vicuna-echo"]
options = {{ split = "byte" }}
"""


@pytest.fixture
def ours(serving: Serving) -> Ours:
    """``async with ours(keys of [fastchat]) as server``: with the model "vicuna-echo"."""

    @asynccontextmanager
    async def ours(fastchat: str = "", port: int = 0) -> AsyncIterator[HttpServer]:
        async with serving(CONFIG.format(fastchat=fastchat), port=port) as server:
            yield server

    return ours


def client_of(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=60)


async def until(condition: Callable[[], bool]) -> None:
    """Bounded by what a model takes to load on a busy machine."""
    with anyio.fail_after(90):
        while True:
            if condition():
                return
            await anyio.sleep(0.05)


async def listed(server: HttpServer, *models: str) -> None:
    """Return once the server lists these models beside its own, and no others."""
    await until(lambda: server.application.registry.models == tuple(sorted(("vicuna-echo", *models))))
