"""Roles of a cluster, each on a host of its own, and how soon one of them is to know what happened to another."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from tests import cluster
from tests.end_to_end.raw import Connection, Reply, get, post
from tests.end_to_end.role import Role
from tests.faults.load import Load
from tests.namespaces.network import Network, Place

__all__ = ["AT_ONCE_S", "HARDLY_S", "OPEN", "SOON_S", "Host", "Hosts"]

SOON_S = 3.0
"""Two seconds are promised; the rest is for a machine that has other things to do."""

HARDLY_S = 1.5
"""Less than it takes to notice that somebody is silent: nobody had to wait for that."""

AT_ONCE_S = 0.5
"""50 ms are promised where a connection ends, and nobody has to notice a silence; the rest is for the machine."""

KEY = "sk-client"
OPEN = '[server]\nhost = "0.0.0.0"\nport = 8000\ndrain_s = 10\n'
"""Listen for other hosts."""


class Host:
    """A place, and the role that runs there."""

    def __init__(self, place: Place, role: Role) -> None:
        self.place, self.role = place, role

    @property
    def address(self) -> str:
        return self.place.address

    @property
    def url(self) -> str:
        return f"http://{self.address}:8000"


class Hosts:
    """What a test needs to build a cluster, and to look at it from its client's host."""

    def __init__(self, network: Network, folder: Path, listed: list[Role]) -> None:
        self.network, self._folder, self._roles = network, folder, listed
        self.client = network.place("client")
        self._steady: dict[Host, int] = {}

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

    async def is_well(self, *knowing: Host, ready: int) -> None:
        """Wait until these know so many workers to be ready, which they are to do after every test."""
        self._steady |= dict.fromkeys(knowing, ready)
        await self.recover()

    async def recover(self) -> None:
        """Mend the network, and wait until all is well that was."""
        self.network.heal()
        for host, ready in self._steady.items():
            await self.know(host, ready)

    def load(self, api: Host, *, words: int = 40) -> Load:
        """Of streams that take less than a second each: every test waits for its last ones."""
        return Load(partial(self.client.connected, api.address), key=KEY, words=words)

    async def ask(self, api: Host, path: str, body: dict[str, Any]) -> Reply:
        async with self.client.connected(api.address) as connection:
            return await connection.request(post(path, body, authorization=f"Bearer {KEY}"))

    async def cards(self, host: Host) -> list[dict[str, Any]]:
        """The workers that an API or a controller knows."""
        token = KEY if "[api]" in host.role.config else cluster.TOKEN
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

    async def know(self, host: Host, ready: int) -> float:
        """Wait until it knows so many workers to be ready. Returns the seconds it took."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(10):
                while await self.ready(host) != ready:  # noqa: ASYNC110 - another process sets no event
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{host.role.name} does not know {ready} ready workers:\n{host.role.log}") from None
        return loop.time() - began

    async def ready(self, host: Host) -> int:
        """How many workers it knows to be ready."""
        return [card["state"] for card in await self.cards(host)].count("ready")
