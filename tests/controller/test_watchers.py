"""Those that watch a table: told of it once and then of what changes, for as long as they are heard."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from fastchat_serve.controller import watchers
from fastchat_serve.controller.table import Table
from fastchat_serve.controller.watchers import Watchers
from fastchat_serve.protocol.frames import FrameReader, frame
from fastchat_serve.protocol.link import Message, Ping
from fastchat_serve.protocol.watch import Choosing, FromController, Joined, Listing, NodeCard, Watch
from fastchat_serve.worker.link import Link
from tests.worker.every_worker import until

pytestmark = pytest.mark.anyio

CARD = NodeCard("node", "http://10.0.0.1:80")
CHOOSING = Choosing("shortest_queue", {})


class Controller:
    """The table, its watchers, and where nodes were told to find them."""

    def __init__(self) -> None:
        self.table = Table()
        self.named: list[tuple[str, ...]] = []
        self.watchers = Watchers(self.table, CHOOSING, lambda urls: self.named.append(tuple(urls)))


@asynccontextmanager
async def watching(controller: Controller, *said: Message) -> AsyncIterator[tuple[socket.socket, Link]]:
    """A watcher that says this: its end, and the controller's."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with theirs:
        _, link = await loop.create_unix_connection(controller.watchers.accept, sock=ours)
        theirs.send(frame(said))
        yield theirs, link
        link.abort("the test is over")


async def test_a_watcher_is_told_what_is_listed_and_what_comes():
    controller, reader, told = Controller(), FrameReader(list[FromController]), []
    async with watching(controller, Watch("http://10.0.0.2:80")) as (end, _):
        await until(lambda: controller.named == [("http://10.0.0.2:80",)])
        controller.table.add(CARD)
        with anyio.fail_after(10):
            while len(told) < 3:
                told += reader.feed(await asyncio.get_running_loop().sock_recv(end, 1 << 16))
    assert told == [CHOOSING, Listing(()), Joined(CARD)]


async def test_a_watcher_that_is_frozen_is_given_up_and_named_to_nodes_no_more(monkeypatch):
    monkeypatch.setattr(watchers, "LEASE_S", 0.1)
    controller = Controller()
    async with watching(controller, Watch("http://10.0.0.2:80")) as (_, link):
        await until(lambda: bool(controller.named))
        link.pace(0.02)
        with anyio.fail_after(10):
            await link.wait_closed()
    assert controller.named == [("http://10.0.0.2:80",), ()]
    assert controller.watchers.links == ()


async def test_a_watcher_that_is_heard_again_within_its_lease_goes_on(monkeypatch):
    monkeypatch.setattr(watchers, "LEASE_S", 0.5)
    controller, loop = Controller(), asyncio.get_running_loop()
    async with watching(controller, Watch("http://10.0.0.2:80")) as (end, link):
        await until(lambda: bool(controller.named))
        link.pace(0.02)
        frozen_at = loop.time()
        await until(lambda: loop.time() - frozen_at > 0.2)
        while loop.time() - frozen_at < 1.0:
            end.send(frame([Ping()]))
            await anyio.sleep(0.02)
        assert link.open


async def test_who_asks_to_watch_twice_is_cut_off():
    """A listing is long, and to ask for it is short."""
    controller = Controller()
    async with watching(controller, *[Watch("http://10.0.0.2:80")] * 1000) as (_, link):
        with anyio.fail_after(10):
            await link.wait_closed()
    assert controller.named == [("http://10.0.0.2:80",), ()]
