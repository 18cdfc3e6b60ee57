"""Engines opened on the demonstration model."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on a busy machine stall each other
sys.path.insert(0, str(Path(__file__).parent))  # for the module beside this one

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from mlx_answers import WEIGHTS, Opened, setup

from fastchat_backend_mlx import open_mlx
from fastchat_serve import Engine


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """A blocking call of the engine on the event loop fails the test that made it."""
    with blockbuster_ctx(["fastchat_backend_mlx", "fastchat_serve.stepping"]):
        yield


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def opened() -> Opened:
    """``async with opened(max_batch=4) as engine:``; also takes a folder."""

    @asynccontextmanager
    async def opened(model: Path = WEIGHTS, **options: Any) -> AsyncIterator[Engine]:
        async with open_mlx(setup(model, **options)) as engine:
            yield engine

    return opened
