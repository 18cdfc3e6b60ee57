"""F31: every process of a cluster is restarted, one after the other, while a hundred streams are under way. None of
them is broken, none goes silent, and no other request fails: who is turned away by one that stops asks another."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest

from tests import cluster
from tests.end_to_end.raw import Connection, connected, get
from tests.end_to_end.role import Role, roles
from tests.faults.load import Load
from tests.ports import free_ports

pytestmark = pytest.mark.anyio

STREAMS = 100
SILENT_S = 3.0
"""Six processes that start anew share this machine with all clients."""


class Balancer:
    """Sends each client to an API that says it is ready, in turn, as load balancers do."""

    def __init__(self, urls: list[str]) -> None:
        self._turns = itertools.cycle(urls)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Connection]:
        while not await self._is_ready(url := next(self._turns)):  # noqa: ASYNC110 - another process sets no event
            await anyio.sleep(0.01)
        async with connected(url) as connection:
            yield connection

    @staticmethod
    async def _is_ready(url: str) -> bool:
        with suppress(OSError, asyncio.IncompleteReadError):
            async with connected(url) as connection:
                return (await connection.request(get("/ready"))).status == 200
        return False


async def ready(urls: list[str], count: int) -> None:
    """Wait until all of these know so many ready workers."""
    with anyio.fail_after(20):
        for url in urls:
            async with connected(url) as connection:
                while True:
                    reply = await connection.request(get("/cluster/workers", authorization=f"Bearer {cluster.TOKEN}"))
                    if [card["state"] for card in reply.json()["workers"]].count("ready") == count:
                        break
                    await anyio.sleep(0.02)


async def test_f31_no_stream_is_broken_and_none_is_silent_while_everything_is_restarted(tmp_path):
    ports = dict(zip(["c1", "c2", "a1", "a2", "w1", "w2"], free_ports(6), strict=True))
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    controllers = [urls["c1"], urls["c2"]]
    configs = {
        "c": cluster.controller(),
        "a": cluster.api(*controllers),
        "w": cluster.worker(*controllers, more=f"concurrency = {STREAMS}", options="delay_ms = 20"),
    }
    apis = [urls["a1"], urls["a2"]]
    async with roles() as listed:
        for name, port in ports.items():
            listed.append(Role(name, f"[server]\nport = {port}\n{configs[name[0]]}", tmp_path))
        async with anyio.create_task_group() as tasks:
            for role in listed:
                tasks.start_soon(role.start)
        await ready([*controllers, *apis], 2)
        load = Load(Balancer(apis).connected, streams=STREAMS, is_patient=True)
        async with load.running():
            await load.is_at_work()
            for role in listed:
                await role.restart()
                await ready([*controllers, *apis], 2)
                await load.is_at_work()
    assert load.errors == {}
    assert sum(outcome.is_stream for outcome in load.outcomes) > STREAMS
    assert load.longest_wait_s < SILENT_S
    assert sum(outcome.refused for outcome in load.outcomes) < STREAMS
