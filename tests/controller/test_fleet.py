"""Nodes in the registry: they come with a link, are out of rotation without, and are forgotten after their lease."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from fastchat_serve.controller import damping
from fastchat_serve.controller import fleet as module
from fastchat_serve.controller.fleet import Fleet, NodeLink, node_label
from fastchat_serve.controller.registry import Registry
from fastchat_serve.protocol.frames import frame
from fastchat_serve.protocol.link import FromHost, Gone, Hello, Leaving, Message, Ping, Statement
from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.link import PING_S
from tests.worker.every_worker import local, until

pytestmark = pytest.mark.anyio

HELLO = Hello("node", 1, 1, "0")


class Node:
    """One end of a socket pair, which says what a test wants it to say."""

    def __init__(self, fleet: Fleet, end: socket.socket) -> None:
        self._fleet, self._end = fleet, end
        self.link: NodeLink

    def says(self, *messages: Message) -> None:
        self._end.send(frame(messages))

    def dies(self) -> None:
        self._end.close()

    async def joins(self, hello: Hello = HELLO) -> NodeLink:
        self.says(hello)
        await until(lambda: self.link.hello is not None)
        self._fleet.admit(self.link)
        return self.link


@asynccontextmanager
async def node(fleet: Fleet) -> AsyncIterator[Node]:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        made = Node(fleet, theirs)
        made.link = NodeLink(fleet, lambda link, hello: None)
        await loop.create_unix_connection(lambda: made.link.link, sock=ours)
        yield made
        made.link.link.abort("the test is over")


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def fleet(registry: Registry) -> Fleet:
    return Fleet(registry)


@pytest.fixture
async def said() -> Statement:
    """What a ready worker is, as its host would say it."""
    from fastchat_serve.protocol.frames import FrameReader
    from fastchat_serve.protocol.link import FromCaller
    from fastchat_serve.worker.host import Host
    from fastchat_serve.worker.link import Link

    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(10)
    async with local() as worker, anyio.create_task_group() as tasks:
        host = Host({worker.id: worker}, tasks)
        loop = asyncio.get_running_loop()
        _, host.link = await loop.create_unix_connection(lambda: Link(list[FromCaller], host), sock=ours)
        host.announce()
        await anyio.lowlevel.checkpoint()
        with theirs:
            messages = FrameReader(list[FromHost]).feed(await anyio.to_thread.run_sync(theirs.recv, 1 << 16))
        host.link.abort("it has said enough")
    (found,) = (message for message in messages if isinstance(message, Statement))
    return found


def states(registry: Registry) -> list[WorkerState]:
    return [worker.state for worker in registry.workers]


async def test_what_a_node_says_of_its_workers_counts_once_it_is_let_in(fleet, registry, said):
    async with node(fleet) as there:
        there.says(HELLO, said)
        await until(lambda: bool(there.link.workers))
        assert registry.workers == ()
        fleet.admit(there.link)
        assert states(registry) == [WorkerState.READY]
        there.says(Gone(said.worker))
        await until(lambda: registry.workers == ())


async def test_whoever_speaks_before_it_says_who_it_is_is_cut_off(fleet, registry, said):
    async with node(fleet) as there:
        there.says(said)
        with anyio.fail_after(10):
            await there.link.link.wait_closed()
        assert registry.workers == ()


async def test_whoever_is_silent_before_it_is_let_in_is_cut_off(fleet):
    async with node(fleet) as there:
        there.link.link.pace(0.02)
        with anyio.fail_after(10):
            await there.link.link.wait_closed()


async def test_a_dead_node_is_lost_at_once_and_forgotten_after_its_lease(fleet, registry, said, monkeypatch):
    gone: list[str] = []
    fleet.on_left.append(gone.append)
    async with node(fleet) as there:
        await there.joins()
        there.says(said)
        await until(lambda: states(registry) == [WorkerState.READY])
        there.dies()
        await until(lambda: states(registry) == [WorkerState.LOST])
        fleet.look()
        assert states(registry) == [WorkerState.LOST]
        monkeypatch.setattr(module, "LEASE_S", -1.0)
        fleet.look()
        assert (registry.workers, gone) == ((), ["node"])


async def test_a_node_that_was_leaving_is_not_waited_for(fleet, registry, said):
    async with node(fleet) as there:
        await there.joins()
        there.says(said, Leaving())
        await until(lambda: there.link.leaving)
        assert states(registry) == [WorkerState.READY], "what it has accepted it finishes"
        there.dies()
        await until(lambda: registry.workers == ())


async def test_a_node_that_comes_back_takes_the_place_of_its_former_self(fleet, registry, said):
    async with node(fleet) as before, node(fleet) as after:
        await before.joins()
        before.says(said)
        await until(lambda: states(registry) == [WorkerState.READY])
        before.dies()
        await until(lambda: states(registry) == [WorkerState.LOST])
        await after.joins(Hello("node", 2, 1, "0"))
        after.says(said)
        await until(lambda: states(registry) == [WorkerState.READY])
        assert fleet.get("node") is after.link
        assert not before.link.link.open


async def test_to_be_silent_is_no_life_a_machine_that_dies_at_once_each_time_is_kept_out(fleet, registry, monkeypatch):
    """Its links do not break: they are given up long after."""
    monkeypatch.setattr(damping, "STEADY_S", 0.5)
    monkeypatch.setattr(module, "LEASE_S", 0.6)
    for _ in range(damping.FREE + 1):
        async with node(fleet) as there:
            link = await there.joins()
            link.link.pace(0.02)
            await until(lambda link=link: link.lost_at is not None)
            while fleet.get("node") is link:
                fleet.look()
                await anyio.sleep(0.01)
    async with node(fleet) as there:
        assert (await there.joins()).kept_out


async def test_a_node_that_is_silent_and_heard_again_is_said_to_be_and_by_where_it_is(fleet, registry, caplog):
    caplog.set_level(logging.INFO)
    async with node(fleet) as there:
        there.says(HELLO)
        await until(lambda: there.link.hello is not None)
        fleet.admit(there.link, "http://10.0.0.1:80")
        there.link.link.pace(0.02)
        await until(lambda: there.link.lost_at is not None)
        there.says(Ping())
        await until(lambda: there.link.lost_at is None)
    label = "Node node at http://10.0.0.1:80"
    assert caplog.messages[:3] == [
        f"{label} is listed.",
        f"{label} is lost: nothing is heard of it",
        f"{label} is heard again.",
    ]


def test_what_a_node_says_of_itself_makes_one_short_word_of_a_line():
    assert node_label("0123456789ab", "http://10.0.0.1:80") == "Node 01234567 at http://10.0.0.1:80"
    assert node_label("no\nde", "x\ny" * 1000).count("\n") == 0
    assert len(node_label("node", "x" * 1000)) == 300


async def test_many_links_that_have_nothing_to_do_are_pinged_less_often(fleet, monkeypatch):
    monkeypatch.setattr(module, "PINGS_PER_S", 1)
    async with node(fleet) as one, node(fleet) as other:
        await one.joins(Hello("one", 1, 1, "0"))
        await other.joins(Hello("other", 1, 1, "0"))
        assert other.link.link.ping_s > PING_S
        fleet.look()
        assert one.link.link.ping_s == other.link.link.ping_s
        one.says(Ping())


async def test_when_most_nodes_have_left_the_others_are_pinged_more_often_again(fleet, monkeypatch):
    monkeypatch.setattr(module, "PINGS_PER_S", 1)
    async with node(fleet) as one:
        await one.joins(Hello("one", 1, 1, "0"))
        async with node(fleet) as other:
            await other.joins(Hello("other", 1, 1, "0"))
            fleet.look()
            assert one.link.link.ping_s == 2.0
        fleet.forget("other")
        fleet.look()
        assert one.link.link.ping_s == 1.0
