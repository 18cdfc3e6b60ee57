"""Engines of this backend, and how the tests ask them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fastchat_backend_vllm import VllmOptions, open_vllm
from fastchat_backend_vllm.engine import VllmEngine
from fastchat_serve import EngineSetup
from fastchat_serve.testing.answers import Answer
from fastchat_serve.testing.asking import answer, asking, saying, until

__all__ = ["CAPITAL", "Answer", "answer", "asking", "needs_vllm", "opened", "until"]

needs_vllm = [
    pytest.mark.anyio,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("default"),  # vLLM imports half of the world, which has its own
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here"),
]

CAPITAL = saying("What is the capital of France?")


@asynccontextmanager
async def opened(model: Path, **options: Any) -> AsyncIterator[VllmEngine]:
    """``async with opened(demo, max_num_seqs=4) as engine:``"""
    settings = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "kv_cache_memory": "256MiB"} | options
    engine = open_vllm(EngineSetup(str(model), VllmOptions(**settings), lambda *_: None))
    assert isinstance(engine, VllmEngine)
    async with engine:
        yield engine
