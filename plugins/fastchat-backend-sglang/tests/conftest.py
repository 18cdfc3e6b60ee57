"""The real SGLang on the demonstration model: one engine for all tests that do not break it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on a busy machine stall each other
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this one

from collections.abc import AsyncIterator, Iterator
from importlib.resources import files
from importlib.util import find_spec

import pytest
from blockbuster import blockbuster_ctx
from sglang_answers import Opened, opened_on
from tokenizers import Tokenizer

from fastchat_backend_sglang.engine import SglangEngine
from fastchat_serve.text import TokenizerVocabulary


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """A blocking call of the engine on the event loop fails the test that made it."""
    with blockbuster_ctx("fastchat_backend_sglang"):
        yield


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def demo() -> Path:
    """The demonstration model's folder."""
    return Path(str(files("fastchat_model_demo") / "weights"))


@pytest.fixture(scope="session")
def vocabulary(demo: Path) -> TokenizerVocabulary:
    return TokenizerVocabulary(Tokenizer.from_file(str(demo / "tokenizer.json")), 2048)


@pytest.fixture(scope="session")
def opened(demo: Path) -> Opened:
    """``async with opened(max_batch=4) as engine:``; skips where SGLang is not installed."""
    if find_spec("sglang") is None:
        pytest.skip("needs SGLang")
    return opened_on(demo)


@pytest.fixture(scope="session")
async def engine(opened: Opened) -> AsyncIterator[SglangEngine]:
    async with opened() as engine:
        yield engine
