"""A cluster over several hosts, and a client's host: see `hosts.py` and `network.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.end_to_end.role import roles
from tests.namespaces.hosts import Hosts
from tests.namespaces.network import Network, why_not


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = why_not() if here else ""
    for item in here if reason else ():
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """For fixtures that live as long as a module."""
    return "asyncio"


@pytest.fixture(scope="module")
async def hosts(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hosts]:
    with Network() as network:
        async with roles() as listed:
            yield Hosts(network, tmp_path_factory.mktemp("hosts"), listed)


@pytest.fixture
def network(hosts: Hosts) -> Network:
    return hosts.network


@pytest.fixture(autouse=True)
async def all_is_well_again(hosts: Hosts) -> AsyncIterator[None]:
    """Each test leaves its module's hosts as it found them."""
    yield
    await hosts.recover()
