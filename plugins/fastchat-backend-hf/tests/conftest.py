"""Tiny models on disk, and engines opened on them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two threads on a busy machine stall each other
sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this one

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import tiny_models
from blockbuster import blockbuster_ctx
from hf_answers import Folder, Opened, engine_on
from hypothesis import HealthCheck, settings
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from fastchat_serve.stepping import SteppingEngine

transformers_logging.disable_progress_bar()

# What one example takes says nothing where other processes have the cores, too.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """A blocking call of the engine on the event loop fails the test that made it."""
    with blockbuster_ctx(["fastchat_backend_hf", "fastchat_serve.stepping"]):
        yield


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_models.build_tokenizer()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Folder:
    """``folder("llama")``: where the model that `tiny_models.llama` makes was saved."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            tiny_models.save_model(made[name], getattr(tiny_models, name)(), tokenizer)
        return made[name]

    return folder


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """What ``folder("llama")`` holds, for comparison."""
    return tiny_models.llama()


@pytest.fixture
def opened(folder: Folder) -> Opened:
    """``async with opened("llama", max_batch=4) as engine:``; also takes a folder."""

    @asynccontextmanager
    async def opened(model: str | Path = "llama", **options: Any) -> AsyncIterator[SteppingEngine]:
        path = folder(model) if isinstance(model, str) else model
        async with engine_on(path, **{"kv_cache_tokens": 4096, "device": "cpu"} | options) as engine:
            yield engine

    return opened
