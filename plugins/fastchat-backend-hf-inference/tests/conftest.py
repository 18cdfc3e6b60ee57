"""Engines on a real server, and on transports that answer as a test tells them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this one

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import huggingface_hub.constants
import pytest
from blockbuster import blockbuster_ctx
from hf_asking import Opened
from huggingface_hub.utils._http import default_async_client_factory

from fastchat_backend_hf_inference import HfInferenceOptions
from fastchat_backend_hf_inference.engine import HfInferenceEngine
from fastchat_serve import EngineSetup
from tests.conftest import serving

__all__ = ["serving"]


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """A blocking call on the event loop fails the test that made it."""
    with blockbuster_ctx("fastchat_backend_hf_inference"):
        yield


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite runs with HF_HUB_OFFLINE=1, under which huggingface_hub connects to nothing; these tests are local."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def opened() -> Opened:
    """``async with opened("model", base_url=…) as engine:``."""

    @asynccontextmanager
    async def opened(model: str = "m", **options: Any) -> AsyncIterator[HfInferenceEngine]:
        async with HfInferenceEngine(EngineSetup(model, HfInferenceOptions(**options), lambda *_: None)) as engine:
            yield engine

    return opened


@pytest.fixture
def answered() -> Iterator[Callable[[Callable[[httpx2.Request], httpx2.Response]], list[httpx2.Request]]]:
    """``requests = answered(handler)``: from now on, nothing goes over a network."""

    def answered(handler: Callable[[httpx2.Request], httpx2.Response]) -> list[httpx2.Request]:
        requests: list[httpx2.Request] = []

        def note(request: httpx2.Request) -> httpx2.Response:
            requests.append(request)
            return handler(request)

        huggingface_hub.set_async_client_factory(lambda: httpx2.AsyncClient(transport=httpx2.MockTransport(note)))
        return requests

    yield answered
    huggingface_hub.set_async_client_factory(default_async_client_factory)
