"""One server per module, however many cases attack it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.hostile.victim import Victim, attacked


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Victim]:
    """A server that wants a key."""
    async with attacked(tmp_path_factory.mktemp("guarded"), keys=True) as victim:
        yield victim


@pytest.fixture(scope="module")
async def open_(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Victim]:
    """A server that answers everyone."""
    async with attacked(tmp_path_factory.mktemp("open"), keys=False) as victim:
        yield victim
