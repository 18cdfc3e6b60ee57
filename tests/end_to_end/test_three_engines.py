"""Three engines of different makers in one process: they serve at once, and one's death is its own affair."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import APIError, AsyncOpenAI

from tests.end_to_end.process import ServerProcess, started

for library, backend in (("torch", "hf"), ("mlx_lm", "mlx"), ("vllm", "vllm")):
    pytest.importorskip(library, reason=f"needs the engine of {backend}")
    pytest.importorskip(f"fastchat_backend_{backend}", reason=f"needs the backend {backend}")

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

LOADING_S = 300.0
CONFIG = """
[server]
port = 0
[controller]
[api]

[[worker]]
backend = "hf"
model = "demo"
names = ["by-hf"]
[worker.options]
device = "cpu"
dtype = "float32"

[[worker]]
backend = "mlx"
model = "demo"
names = ["by-mlx"]
[worker.options]
dtype = "float32"

[[worker]]
backend = "vllm"
model = "demo"
names = ["by-vllm"]
[worker.options]
dtype = "float32"
enforce_eager = true
max_model_len = 1024
"""
MODELS = ("by-hf", "by-mlx", "by-vllm")
STORY: Any = [{"role": "user", "content": "Tell me a story about a lighthouse."}]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    config = tmp_path / "three.toml"
    config.write_text(CONFIG)
    async with started("--config", config, patience_s=LOADING_S) as server:
        yield server


async def told(client: AsyncOpenAI, model: str, begun: asyncio.Event | None = None) -> str:
    """A long answer, streamed; `begun` is set once some of it has come."""
    stream = await client.chat.completions.create(
        model=model, messages=STORY, temperature=0, max_tokens=600, stream=True, extra_body={"ignore_eos": True}
    )
    pieces: list[str] = []
    async for event in stream:
        pieces.append(event.choices[0].delta.content or "")
        if begun is not None and len(pieces) == 5:
            begun.set()
    return "".join(pieces)


async def test_one_of_three_engines_is_killed_and_the_others_go_on(server: ServerProcess) -> None:
    url = await server.url()
    reading = asyncio.create_task(server.ended())  # an engine's process would stop at a full pipe
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        assert sorted([card.id async for card in client.models.list()]) == sorted(MODELS)
        undisturbed = dict(zip(MODELS, await asyncio.gather(*(told(client, model) for model in MODELS)), strict=True))
        assert undisturbed["by-hf"] == undisturbed["by-mlx"] == undisturbed["by-vllm"]

        begun = {model: asyncio.Event() for model in MODELS}
        telling = [asyncio.create_task(told(client, model, begun[model])) for model in MODELS]
        async with asyncio.timeout(120):
            await asyncio.gather(*(event.wait() for event in begun.values()))
        kill_engine_of_vllm(server.process.pid)
        by_hf, by_mlx, by_vllm = await asyncio.gather(*telling, return_exceptions=True)

        assert (by_hf, by_mlx) == (undisturbed["by-hf"], undisturbed["by-mlx"])
        assert isinstance(by_vllm, APIError)
        assert await told(client, "by-hf") == undisturbed["by-hf"]
        assert await told_once_it_is_back(client, "by-vllm") == undisturbed["by-vllm"]
    server.process.terminate()
    assert await reading == 0
    assert not [child for child in psutil.Process().children(recursive=True) if "VLLM" in child.name()]


def kill_engine_of_vllm(server: int) -> None:
    """As the kernel does when memory runs out."""
    engines = [child for child in psutil.Process(server).children(recursive=True) if "EngineCore" in child.name()]
    assert len(engines) == 1, [child.name() for child in psutil.Process(server).children(recursive=True)]
    os.kill(engines[0].pid, signal.SIGKILL)


async def told_once_it_is_back(client: AsyncOpenAI, model: str) -> str:
    """Ask until the worker has opened its engine anew."""
    async with asyncio.timeout(LOADING_S):
        while True:
            try:
                return await told(client, model)
            except APIError:
                await asyncio.sleep(0.5)
