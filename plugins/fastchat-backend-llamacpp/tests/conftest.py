"""The demonstration model as a GGUF file, and engines opened on it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on a busy machine stall each other
sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this one

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from llamacpp_answers import Opened

from fastchat_backend_llamacpp import LlamaCppOptions, open_llamacpp
from fastchat_serve import EngineSetup
from fastchat_serve.stepping import SteppingEngine

NEEDS_LIBRARY = "llama-cpp-python is not installed"


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """A blocking call of the engine on the event loop fails the test that made it."""
    with blockbuster_ctx(["fastchat_backend_llamacpp", "fastchat_serve.stepping"]):
        yield


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def weights() -> Path:
    """The folder of the demonstration model."""
    return Path(str(files("fastchat_model_demo") / "weights"))


@pytest.fixture(scope="session")
def library() -> None:
    """Skips a test, visibly, where llama.cpp is not installed: it takes minutes to compile."""
    if find_spec("llama_cpp") is None:
        pytest.skip(NEEDS_LIBRARY)


@pytest.fixture(scope="session")
def converted(library: None, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``converted(pooling=...)``: the demonstration model as a file, made once for each set of arguments."""
    from convert import convert

    made: dict[str, Path] = {}

    def converted(**settings: Any) -> Path:
        key = repr(sorted(settings.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("gguf") / "model.gguf"
            convert(weights, made[key], **settings)
        return made[key]

    return converted


@pytest.fixture
def opened(converted: Callable[..., Path]) -> Opened:
    """``async with opened(max_batch=4) as engine:``; also takes a file. The cache is exact unless asked otherwise."""

    @asynccontextmanager
    async def opened(file: Path | None = None, **options: Any) -> AsyncIterator[SteppingEngine]:
        settings = {"cache_type_k": "f32", "cache_type_v": "f32", "kv_cache_tokens": 4096} | options
        setup = EngineSetup(str(file or converted()), LlamaCppOptions(**settings), lambda *_: None)
        engine = open_llamacpp(setup)
        assert isinstance(engine, SteppingEngine)
        async with engine:
            yield engine

    return opened
