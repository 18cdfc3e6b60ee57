"""F26: a worker that comes and goes three times a second is kept out for a growing time, and the rest serve."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import anyio
import pytest

from fastchat_serve.controller import damping
from fastchat_serve.controller.fleet import UNSTEADY
from fastchat_serve.server import HttpServer
from tests.cluster import api, controller, worker
from tests.conftest import Serving
from tests.end_to_end.raw import connected
from tests.end_to_end.waiting import until
from tests.faults.load import Load
from tests.faults.proxy import Proxy, proxied
from tests.ports import free_ports
from tests.test_cluster import serves

pytestmark = pytest.mark.anyio

EVERY_S = 0.3
OPTIONS = "delay_ms = 20"


@asynccontextmanager
async def flapping(serving: Serving, *, steady: int, unsteady: int) -> AsyncIterator[tuple[HttpServer, list[Proxy]]]:
    """An API that reaches some workers directly, and others through proxies, whose connections can be cut."""
    async with AsyncExitStack() as stack:
        there = await stack.enter_async_context(serving(controller()))
        front = await stack.enter_async_context(serving(api(there.url)))
        for _ in range(steady):
            await stack.enter_async_context(serving(worker(there.url, options=OPTIONS)))
        proxies: list[Proxy] = []
        for port in free_ports(unsteady):
            proxies.append(await stack.enter_async_context(proxied(port)))
            config = worker(there.url, options=OPTIONS, more=f'advertise = "{proxies[-1].url}"')
            await stack.enter_async_context(serving(config, port=port))
        await serves(front, steady + unsteady)
        yield front, proxies


async def flap(proxies: list[Proxy]) -> None:
    while True:
        await anyio.sleep(EVERY_S)
        for proxy in proxies:
            proxy.cut()


async def each_was_kept_out(front: HttpServer, how_many: int) -> None:
    """Not all at once: their links are cut again and again, and then that is the reason."""
    kept_out: set[str] = set()

    def all_were() -> bool:
        workers = front.application.registry.serving("echo")
        kept_out.update(worker.id for worker in workers if worker.reason == UNSTEADY)
        return len(kept_out) == how_many

    await until(all_were, within_s=10)


def reasons(front: HttpServer) -> Counter[str]:
    return Counter(worker.reason for worker in front.application.registry.serving("echo"))


async def test_f26_a_worker_that_flaps_costs_no_request_and_is_soon_kept_out(serving, monkeypatch):
    monkeypatch.setattr(damping, "MOST_S", 2.0)
    async with flapping(serving, steady=1, unsteady=1) as (front, proxies):
        load = Load(partial(connected, front), streams=8)
        async with load.running(), anyio.create_task_group() as tasks:
            tasks.start_soon(flap, proxies)
            await each_was_kept_out(front, 1)
            await load.is_at_work()
            tasks.cancel_scope.cancel()
        assert load.errors == {}
        await serves(front, 2)  # it is let back


async def test_f26_several_that_flap_at_once_take_no_request_along_once_they_are_kept_out(serving, monkeypatch):
    monkeypatch.setattr(damping, "FIRST_S", damping.MOST_S)
    async with flapping(serving, steady=1, unsteady=3) as (front, proxies), anyio.create_task_group() as tasks:
        tasks.start_soon(flap, proxies)
        await each_was_kept_out(front, 3)
        load = Load(partial(connected, front), streams=8)
        async with load.running():
            await load.is_at_work(2.0)
        tasks.cancel_scope.cancel()
    assert load.errors == {}


async def test_f26_who_is_alone_is_not_kept_out_for_long_however_it_flaps(serving):
    async with flapping(serving, steady=0, unsteady=1) as (front, proxies):
        for _ in range(8):
            proxies[0].cut()
            await until(lambda: reasons(front)[""] == 0, within_s=10)
            await until(lambda: reasons(front)[""] == 1, within_s=10)
