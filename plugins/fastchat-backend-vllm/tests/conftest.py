"""The demonstration model. Starting vLLM takes half a minute, so a module's tests share an engine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two threads on a busy machine stall each other
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this one

from collections.abc import Iterator
from importlib.resources import files

import pytest
from blockbuster import blockbuster_ctx


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """A blocking call of the engine on the event loop fails the test that made it."""
    with blockbuster_ctx("fastchat_backend_vllm"):
        yield


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def demo() -> Path:
    """The folder of the demonstration model."""
    return Path(str(files("fastchat_model_demo") / "weights"))
