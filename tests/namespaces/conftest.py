"""A cluster over several hosts, and a client's host: see `network.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests import cluster
from tests.end_to_end.raw import Connection, Reply, get, post
from tests.end_to_end.role import Role, roles
from tests.faults.load import Load
from tests.namespaces.network import Network, Place, why_not

KEY = "sk-client"
OPEN = '[server]\nhost = "0.0.0.0"\nport = 8000\ndrain_s = 10\n'
"""Listen for other hosts."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = why_not() if here else ""
    for item in here if reason else ():
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """For fixtures that live as long as a module."""
    return "asyncio"


class Host:
    """A place, and the role that runs there."""

    def __init__(self, place: Place, role: Role) -> None:
        self.place, self.role = place, role

    @property
    def address(self) -> str:
        return self.place.address

    @property
    def url(self) -> str:
        return f"http://{self.place.address}:8000"


class Hosts:
    """What a test needs to build a cluster, and to look at it from its client's host."""

    def __init__(self, network: Network, folder: Path, listed: list[Role]) -> None:
        self.network, self._folder, self._roles = network, folder, listed
        self.client = network.place("client")

    def controller(self, name: str = "controller", at: Place | None = None) -> Host:
        return self.at(at or self.network.place(name), name, cluster.controller())

    def api(self, *controllers: Host, name: str = "api") -> Host:
        urls = [each.url for each in controllers]
        return self.at(self.network.place(name), name, f'{cluster.api(*urls)}keys = ["{KEY}"]\n')

    def worker(self, *controllers: Host, name: str = "worker", options: str = "delay_ms = 20", **more: str) -> Host:
        urls = [each.url for each in controllers]
        config = cluster.worker(*urls, options=options, **more)
        return self.at(self.network.place(name), name, config)

    def at(self, place: Place, name: str, config: str, *, server: str = OPEN) -> Host:
        role = Role(name, server + config, self._folder, place.prefix)
        self._roles.append(role)
        return Host(place, role)

    async def start(self, *hosts: Host) -> None:
        """All at once."""
        async with anyio.create_task_group() as tasks:
            for host in hosts:
                tasks.start_soon(host.role.start)

    def load(self, api: Host, **settings: Any) -> Load:
        return Load(partial(self.client.connected, api.address), key=KEY, **settings)

    async def ask(self, api: Host, path: str, body: dict[str, Any]) -> Reply:
        async with self.client.connected(api.address) as connection:
            return await connection.request(post(path, body, authorization=f"Bearer {KEY}"))

    async def cards(self, host: Host, token: str) -> list[dict[str, Any]]:
        """The workers that are known there."""
        async with self.client.connected(host.address) as connection:
            reply = await connection.request(get("/cluster/workers", authorization=f"Bearer {token}"))
        workers: list[dict[str, Any]] = reply.json()["workers"]
        return workers

    async def idle(self, worker: Connection) -> float:
        """Wait until the process at the other end runs nothing. Returns the seconds it took."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(10):
            while True:
                reply = await worker.request(get("/cluster/workers", authorization=f"Bearer {cluster.TOKEN}"))
                if not any(card["running"] for card in reply.json()["workers"]):
                    return loop.time() - began

    async def know(self, host: Host, ready: int, within_s: float = 10.0) -> float:
        """Wait until an API or a controller knows so many workers to be ready. Returns the seconds it took."""
        loop = asyncio.get_running_loop()
        began, found = loop.time(), list[str]()
        token = KEY if "[api]" in host.role.config else cluster.TOKEN
        try:
            async with asyncio.timeout(within_s):
                while True:
                    found = [card["state"] for card in await self.cards(host, token)]
                    if found.count("ready") == ready:
                        return loop.time() - began
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{host.role.name} knows {found}, not {ready} ready:\n{host.role.log}") from None


@pytest.fixture(scope="module")
async def hosts(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hosts]:
    with Network() as network:
        async with roles() as listed:
            yield Hosts(network, tmp_path_factory.mktemp("hosts"), listed)


@pytest.fixture
def network(hosts: Hosts) -> Iterator[Network]:
    """Healed after every test."""
    yield hosts.network
    hosts.network.heal()
