"""The real link, host, caller, remote worker and failover run on virtual time as they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import anyio
import pytest

from fastchat_serve.controller.dispatcher import Dispatcher
from fastchat_serve.controller.policies import shortest_queue
from fastchat_serve.controller.registry import Registry
from fastchat_serve.engines.echo import EchoEngine, EchoOptions
from fastchat_serve.protocol.link import FromCaller, FromHost
from fastchat_serve.simulation.loop import SimulatedLoop, on, run
from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.caller import Caller
from fastchat_serve.worker.host import Host
from fastchat_serve.worker.link import PING_S, SILENCE, Link
from fastchat_serve.worker.local import LocalWorker
from fastchat_serve.worker.remote import RemoteWorker
from tests.sinks import Remembering, a_request

TEXT = "é😀 to be or not to be, that is the question"
PORT = 7


class Announcing(Host):
    """From the beginning of its link on."""

    def opened(self) -> None:
        self.keep_announcing()


class Fleet:
    """Hosts with a worker each, and an API that calls them over links.

    Attributes:
        workers: As the API has them, by host.
    """

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop, self.registry = loop, Registry()
        self.dispatcher = Dispatcher(self.registry, shortest_queue, Random(1), clock=loop.time)
        self.workers: dict[str, RemoteWorker] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def add(self, host: str, **options: Any) -> None:
        ready = asyncio.Event()
        with on(host):
            self._tasks.append(asyncio.create_task(self._serve(host, ready, options)))
        await ready.wait()
        with on("api"):
            remote = RemoteWorker(f"worker of {host}", ("m",))
            caller = Caller([remote])
            _, caller.link = await self.loop.create_connection(lambda: Link(list[FromHost], caller), host, PORT)
            remote.attach(caller)
        self.workers[host] = remote
        self.registry.add(remote)
        await until(lambda: remote.state is WorkerState.READY)

    async def _serve(self, name: str, ready: asyncio.Event, options: dict[str, Any]) -> None:
        worker = LocalWorker(
            EchoEngine(EchoOptions(split="byte", delay_ms=10, **options)), names=("m",), concurrency=64
        )
        worker.id = f"worker of {name}"
        async with anyio.create_task_group() as tasks:
            await tasks.start(worker.run)

            def accept() -> Link[FromHost, FromCaller]:
                host = Announcing({worker.id: worker}, tasks)
                host.link = Link(list[FromCaller], host)
                return host.link

            await self.loop.create_server(accept, name, PORT)
            ready.set()
            await anyio.sleep_forever()

    def ask(self, **request: Any) -> Remembering:
        sink = Remembering()
        with on("api"):
            self.dispatcher.start("m", a_request(TEXT, **request), sink)
        return sink


async def until(condition: Callable[[], bool]) -> None:
    """Looked at every 10 ms of virtual time."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def fleet_of(loop: SimulatedLoop, *hosts: str) -> AsyncIterator[Fleet]:
    fleet = Fleet(loop)
    for host in hosts:
        await fleet.add(host)
    yield fleet


def test_answers_come_over_links_however_the_bytes_arrive() -> None:
    async def main(loop: SimulatedLoop) -> None:
        loop.network.split = 0.9
        async with fleet_of(loop, "one", "two") as fleet:
            for sink in [fleet.ask(seed=number) for number in range(20)]:
                await sink.ended()
                assert (sink.text, sink.ends) == (TEXT, [None])

    run(main)


def test_a_link_stays_through_hours_in_which_nothing_is_asked() -> None:
    async def main(loop: SimulatedLoop) -> None:
        async with fleet_of(loop, "one") as fleet:
            await asyncio.sleep(600)
            assert fleet.workers["one"].state is WorkerState.READY

    run(main)


@pytest.mark.parametrize("fault", ["freeze", "cut"])
def test_a_silent_host_is_out_within_its_time_and_back_when_it_is_heard(fault: str) -> None:
    async def main(loop: SimulatedLoop) -> None:
        async with fleet_of(loop, "one") as fleet:
            worker = fleet.workers["one"]
            await asyncio.sleep(1)
            loop.freeze("one") if fault == "freeze" else loop.network.cut("api", "one")
            began = loop.time()
            await until(lambda: worker.state is not WorkerState.READY)
            assert loop.time() - began <= (SILENCE + 2) * PING_S
            await asyncio.sleep(0.5)
            loop.thaw("one") if fault == "freeze" else loop.network.mend("api", "one")
            await asyncio.sleep(0.5)
            assert worker.state is WorkerState.READY

    run(main)


@pytest.mark.parametrize("fault", ["kill", "freeze", "cut", "reset"])
@pytest.mark.parametrize("seed", range(15))
def test_g4_g7_whatever_becomes_of_a_host_its_answers_go_on_and_end_once(seed: int, fault: str) -> None:
    """Wherever in the answer it happens: 10 ms a token, so another place for each seed."""

    async def main(loop: SimulatedLoop) -> None:
        async with fleet_of(loop, "one", "two") as fleet:
            sinks = [fleet.ask(temperature=1.0, seed=number) for number in range(6)]
            await asyncio.sleep(0.003 + seed * 0.037)
            if fault == "kill":
                loop.kill("one")
            elif fault == "freeze":
                loop.freeze("one")
            elif fault == "cut":
                loop.network.cut("api", "one")
            else:
                loop.network.reset("api", "one")
            await asyncio.sleep(20)
            for sink in sinks:
                assert (sink.text, sink.ends) == (TEXT, [None])
            usages = [chunk.usage for sink in sinks for chunk in sink.chunks if chunk.usage is not None]
            assert len(usages) == len(sinks)

    run(main, seed=seed)


def test_one_seed_is_one_run_of_the_real_code() -> None:
    async def main(loop: SimulatedLoop) -> list[float]:
        async with fleet_of(loop, "one", "two") as fleet:
            times = []
            for number in range(5):
                sink = fleet.ask(seed=number)
                if number == 2:
                    loop.kill("one")
                await sink.ended()
                times.append(loop.time())
            return times

    assert run(main, seed=3) == run(main, seed=3)
