"""F10, F11 and F43: between an API and its workers bytes are damaged, cut off, late, or come one by one. No wrong token
is delivered, no request fails while there is another worker, and nobody is thought to be gone who is only far away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import anyio
import pytest

from fastchat_serve.server import HttpServer
from tests.cluster import api, controller, worker
from tests.conftest import Serving
from tests.end_to_end.raw import connected
from tests.end_to_end.waiting import until
from tests.faults.load import Load
from tests.faults.proxy import Proxy, proxied
from tests.ports import free_ports
from tests.test_cluster import serves, states

pytestmark = pytest.mark.anyio

OPTIONS = "delay_ms = 5"


class Far(NamedTuple):
    """A cluster of which one worker is reached through a proxy; the other, if there is one, directly."""

    controller: HttpServer
    api: HttpServer
    proxy: Proxy

    def load(self, *, plain_per_s: float = 10, **settings: int) -> Load:
        return Load(partial(connected, self.api), streams=4, plain_per_s=plain_per_s, **settings)


@asynccontextmanager
async def far(serving: Serving, *, others: bool = True) -> AsyncIterator[Far]:
    (port,) = free_ports(1)
    async with (
        proxied(port) as proxy,
        serving(controller()) as there,
        serving(api(there.url)) as front,
        serving(worker(there.url, options=OPTIONS, more=f'advertise = "{proxy.url}"'), port=port),
        serving(worker(there.url, options=OPTIONS)) if others else nullcontext(),
    ):
        await serves(front, 1 + others)
        yield Far(there, front, proxy)


def flip(data: bytes) -> bytes:
    """One bit of some text that is on its way."""
    spoilt = bytearray(data)
    spoilt[-3] ^= 1
    return bytes(spoilt)


def inflate(data: bytes) -> bytes:
    """The first length becomes a much greater one."""
    return data[:2] + bytes([data[2] | 0x10]) + data[3:]


def lose(data: bytes) -> bytes:
    """Less than a frame: of two that come at once, losing one would do no harm."""
    return data[:-3]


def repeat(data: bytes) -> bytes:
    return data + data[-7:]


@pytest.mark.parametrize("spoil", [flip, inflate, lose, repeat])
async def test_f43_what_is_damaged_between_roles_reaches_no_client(serving, spoil: Callable[[bytes], bytes]):
    async with far(serving) as cluster:
        load = cluster.load()
        async with load.running():
            for _ in range(3):
                await load.is_at_work(0.2)
                before = cluster.proxy.connections
                cluster.proxy.spoil = spoil
                await until(lambda: cluster.proxy.spoil is None, within_s=10)
                await until(lambda: cluster.proxy.connections > before, within_s=10)  # noqa: B023 - it is awaited
                await serves(cluster.api, 2)
    assert load.errors == {}


async def test_f10_a_connection_that_leads_nowhere_is_found_out_within_two_seconds(serving):
    async with far(serving) as cluster:
        load = cluster.load()
        async with load.running():
            await load.is_at_work(0.2)
            cluster.proxy.stall()
            gone_s = await until(lambda: states(cluster.api) == ["lost", "ready"], within_s=10)
            await load.is_at_work()
            cluster.proxy.go_on()
            await serves(cluster.api, 2)
    assert load.errors == {}
    assert gone_s < 2.5
    assert load.longest_wait_s < 3.0


@pytest.mark.parametrize("drip", [None, 1], ids=["late", "late and byte by byte"])
async def test_f11_a_worker_far_away_is_not_thought_to_be_gone(serving, drip: int | None):
    """200 ms, 100 more or less: the first token takes one way there and back, and no more."""
    async with far(serving, others=False) as cluster:
        cluster.proxy.delay_s, cluster.proxy.drip = (0.1, 0.3), drip
        load = cluster.load(words=20, plain_per_s=2 if drip else 10)  # each byte is work for the proxy
        async with load.running(), anyio.create_task_group() as tasks:
            tasks.start_soon(_stays_ready, cluster.api)
            await load.is_at_work(5.0)
            tasks.cancel_scope.cancel()
    assert load.errors == {}
    assert load.longest_wait_s < 1.5


async def _stays_ready(front: HttpServer) -> None:
    while True:
        assert states(front) == ["ready"]
        await anyio.sleep(0.02)
