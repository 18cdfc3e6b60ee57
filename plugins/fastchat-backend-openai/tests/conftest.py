"""Engines on real servers: fastchat-serve in this event loop, or one written by hand that misbehaves."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this one

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from raw_upstream import Handler, Opened, RawUpstream

from fastchat_backend_openai import OpenAIOptions
from fastchat_backend_openai.engine import OpenAIEngine
from fastchat_serve import EngineSetup
from tests.conftest import serving

__all__ = ["serving"]


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """A blocking call of the engine on the event loop fails the test that made it."""
    with blockbuster_ctx("fastchat_backend_openai"):
        yield


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def opened() -> Opened:
    """``async with opened(url, "model", usage="sent") as engine:``."""

    @asynccontextmanager
    async def opened(url: str, model: str = "", **options: Any) -> AsyncIterator[OpenAIEngine]:
        async with OpenAIEngine(EngineSetup(model, OpenAIOptions(base_url=url, **options), lambda *_: None)) as engine:
            yield engine

    return opened


@pytest.fixture
def behind(opened: Opened) -> Any:
    """``async with behind(handler) as (engine, upstream):``: an engine, opened lazily, before a server of `handler`."""

    @asynccontextmanager
    async def behind(handler: Handler, **options: Any) -> AsyncIterator[tuple[OpenAIEngine, RawUpstream]]:
        settings = {"lazy": True, "apis": ("chat", "completions", "embeddings")} | options
        async with RawUpstream(handler) as upstream, opened(f"{upstream.url}/v1", "m", **settings) as engine:
            yield engine, upstream

    return behind
