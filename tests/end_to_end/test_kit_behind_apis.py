"""The backends that speak HTTP pass the conformance kit, in front of real servers: ours, and vLLM's own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.process import started
from tests.parity.reference import weights
from tests.ports import free_port

pytest.importorskip("fastchat_backend_openai", reason="needs the backend openai")
pytest.importorskip("fastchat_model_demo", reason="needs the demonstration model")

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(900)]

LOADING_S = 300.0
KIT_S = 600.0
CONTEXT = "512"
MODEL = "demo"
"""What the servers call it: also the name of a plugin's model, whose folder must not be meant."""
OFFLINE = "HF_HUB_OFFLINE"
"""Set, it keeps the hub's client from talking to any server, this machine's own too."""


@asynccontextmanager
async def ours() -> AsyncIterator[str]:
    """fastchat-serve with the demonstration model in transformers."""
    settings = {
        "server.port": "0",
        "worker.0.names": f'["{MODEL}"]',
        "worker.0.options.dtype": "float32",
        "worker.0.options.context_length": CONTEXT,
    }
    chosen = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    async with started("--backend", "hf", "--model", "demo", *chosen, patience_s=LOADING_S) as server:
        yield await server.url()


@asynccontextmanager
async def vllms() -> AsyncIterator[str]:
    """vLLM's own server, with the same model."""
    port = str(free_port())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(weights())),
        *("--served-model-name", MODEL, "--host", "127.0.0.1", "--port", port),
        *("--dtype", "float32", "--enforce-eager", "--max-model-len", CONTEXT),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    try:
        url = f"http://127.0.0.1:{port}"
        await is_up(url, process)
        yield url
    finally:
        process.terminate()
        try:
            async with asyncio.timeout(30):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def is_up(url: str, process: asyncio.subprocess.Process) -> None:
    """Wait until a server answers."""
    async with httpx.AsyncClient(base_url=url) as client, asyncio.timeout(LOADING_S):
        while True:
            assert process.returncode is None, "the server ended"
            try:
                if (await client.get("/health")).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.5)


SERVERS = {
    "fastchat-serve": ("fastchat_backend_hf", ours),
    "vllm": ("vllm", vllms),
}
LACKING = {
    ("hf-inference", "fastchat-serve"): '["tool_choice"]',
    ("hf-inference", "vllm"): '["tool_choice","logprobs"]',  # vLLM counts the drawn token among the alternatives
}
"""What the model or the server cannot do, and the protocol has no way to tell."""


@pytest.fixture(params=SERVERS)
async def upstream(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, str]]:
    """A server by its name, and its address."""
    needs, start = SERVERS[request.param]
    if find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed here")
    async with start() as url:
        yield request.param, url


@pytest.mark.parametrize("backend", ["openai", "hf-inference"])
async def test_a_backend_passes_the_kit_in_front_of_a_real_server(
    backend: str, upstream: tuple[str, str], tmp_path: Path
) -> None:
    if find_spec(f"fastchat_backend_{backend.replace('-', '_')}") is None:
        pytest.skip(f"the backend {backend} is not installed here")
    name, url = upstream
    options = [f"base_url={url}/v1"]
    if backend == "hf-inference":
        options += [f"context_length={CONTEXT}", f"lacks={LACKING[backend, name]}"]
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "pytest",
            "--pyargs",
            "fastchat_serve.testing",
            "--backend",
            backend,
            "--model",
            MODEL,
        ),
        *(word for option in options for word in ("--backend-option", option)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key not in (OFFLINE, "PYTHONPATH")},
    )
    try:
        async with asyncio.timeout(KIT_S):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert process.returncode == 0, said.decode()[-8000:]
