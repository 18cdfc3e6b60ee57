"""Against a server that is not ours: ``transformers serve`` with the demonstration model, where both are installed."""

from __future__ import annotations

import asyncio
import importlib.resources
import importlib.util
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from raw_upstream import Opened, asking

from fastchat_backend_openai.engine import OpenAIEngine
from fastchat_serve import Capability, Chunk, GenerateRequest, SamplingParams

NEEDED = ("torch", "transformers", "fastapi", "fastchat_model_demo")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in NEEDED),
        reason="needs transformers[serving] and the demonstration model",
    ),
]

START_S = 240.0
ANSWER_S = 120.0
GREEDY = SamplingParams(temperature=0, max_tokens=12)


@asynccontextmanager
async def transformers_serve(model: Path) -> AsyncIterator[str]:
    """Its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "serve", str(model), "--host", "127.0.0.1", "--port", str(port)),
        *("--device", "cpu", "--dtype", "float32"),
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def answer(engine: OpenAIEngine, request: GenerateRequest) -> list[Chunk]:
    async with asyncio.timeout(ANSWER_S):
        return [chunk async for chunk in engine.generate_stream(request)]


async def test_it_answers_streams_counts_and_stops(opened: Opened) -> None:
    """One test: the server takes long to start."""
    model = Path(str(importlib.resources.files("fastchat_model_demo") / "weights"))
    async with (
        transformers_serve(model) as url,
        opened(url, str(model), wait_s=START_S, lacks=(Capability.LOGPROBS,)) as engine,
    ):
        first = await answer(engine, asking("What is the capital of France?", sampling=GREEDY))
        text = "".join(chunk.text for chunk in first)
        assert text
        assert first[-1].usage is not None
        assert 0 < first[-1].usage.completion_tokens <= 12

        again = await asyncio.gather(
            *(answer(engine, asking("What is the capital of France?", sampling=GREEDY)) for _ in range(4))
        )
        assert ["".join(chunk.text for chunk in chunks) for chunks in again] == [text] * 4

        stream = engine.generate_stream(asking("Tell me a story.", sampling=SamplingParams(max_tokens=1000)))
        await anext(stream)
        await stream.aclose()
        assert engine.current_load().running == 0
