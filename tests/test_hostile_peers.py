"""Who has the cluster's token may still say nonsense: it costs the link, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from fastchat_serve.engine import CONTRACT
from fastchat_serve.protocol.frames import frame
from fastchat_serve.protocol.link import Hello, Message
from fastchat_serve.protocol.watch import Watch
from fastchat_serve.worker.dial import NODE, WATCH, Credentials, dial
from tests.cluster import TOKEN, api, controller, worker
from tests.end_to_end.waiting import until

pytestmark = pytest.mark.anyio

OURS = Credentials(f"Bearer {TOKEN}".encode())
NONSENSE = "http://[nowhere"


class Peer(asyncio.Protocol):
    """Says what a test wants it to say."""

    def __init__(self) -> None:
        self.heard = b""
        self.gone = anyio.Event()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()

    def says(self, *messages: Message) -> None:
        self._transport.write(frame(messages))

    def leaves(self) -> None:
        self._transport.abort()

    async def is_left(self) -> None:
        with anyio.fail_after(10):
            await self.gone.wait()


@asynccontextmanager
async def peer(url: str, path: str) -> AsyncIterator[Peer]:
    made = Peer()
    await dial(url, path, lambda: made, OURS)
    yield made
    made.leaves()


async def test_a_node_whose_address_is_none_is_refused(serving):
    async with serving(controller()) as there, peer(there.url, NODE) as hostile:
        hostile.says(Hello("node", 1, CONTRACT, "0", NONSENSE))
        await hostile.is_left()
        assert b"is no address that can be dialled" in hostile.heard
        async with serving(worker(there.url)):
            await until(lambda: bool(there.application.registry.models), 10)


async def test_a_watcher_whose_address_is_none_breaks_no_worker_that_is_to_dial_it(serving, caplog):
    async with (
        serving(controller()) as there,
        serving(worker(there.url, more='reach = "out"')),
        peer(there.url, WATCH) as hostile,
    ):
        hostile.says(Watch(NONSENSE))
        await until(lambda: f"Not listed at {NONSENSE}" in caplog.text, 10)
        async with serving(api(there.url)) as front:
            await until(lambda: bool(front.application.registry.models), 10)
