"""Thousands of requests of every kind leave nothing behind (G8, F42).

5 000 by default. ``FASTCHAT_LEAK_REQUESTS=100000 pytest tests/faults/test_f42_leaks.py`` is the full run.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import struct
from contextlib import AsyncExitStack, suppress
from typing import Any

import psutil
import pytest

from fastchat_serve.server import HttpServer
from fastchat_serve.worker.base import WorkerState
from tests import cluster
from tests.end_to_end.raw import post
from tests.end_to_end.waiting import queue_lengths, until
from tests.garbage import cyclic_garbage

pytestmark = pytest.mark.anyio

REQUESTS = int(os.environ.get("FASTCHAT_LEAK_REQUESTS", "5000"))
CLIENTS = 50
WARM_UP = 1500
ROUNDS = 4
GROWTH_BYTES = 1 * 2**20
"""What memory may grow by in every round. A leak grows in each of them. An allocator's slack comes in jumps, the more
so after thousands of other tests, and some round goes without."""

WORKER = """
[[worker]]
backend = "echo"
concurrency = 16
queue = 64
"""
ECHO = "[controller]\n[api]" + WORKER
SAID = {"model": "echo", "messages": [{"role": "user", "content": "to be or not to be"}]}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

KINDS: dict[str, tuple[bytes, int]] = {
    "stream": (post(CHAT, SAID | {"stream": True}), 200),
    "plain": (post(CHAT, SAID), 200),
    "several": (post(TEXT, {"model": "echo", "prompt": ["a b", "c"], "n": 2, "logprobs": 1}), 200),
    "embedding": (post("/v1/embeddings", {"model": "echo", "input": "to be"}), 200),
    "bad json": (post(CHAT, b"{"), 400),
    "bad field": (post(CHAT, SAID | {"n": 10**6}), 400),
    "bad model": (post(CHAT, SAID | {"model": "none"}), 404),
    "bad path": (post("/nowhere", b"{}"), 404),
}
"""What clients send, and the status they must get."""
ABORTED = post(CHAT, {"model": "echo", "messages": [{"role": "user", "content": "on and on " * 300}], "stream": True})


class Client(asyncio.Protocol):
    """A closed loop over one kept connection: one request, its reply, the next. No task, no stream objects."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.received = b""
        self.status = 0
        self.leaving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.next()

    def next(self) -> None:
        kind = self.load.draw()
        self.received = b""
        if kind is None:
            self.transport.close()
        elif kind == "abort":
            self.leaving = True
            self.transport.write(ABORTED)
        elif kind == "abort unsent":
            self.transport.write(ABORTED[:-10])
            self.reset()
        else:
            request, self.status = KINDS[kind]
            self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self.leaving:
            self.reset()
            return
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return
        if b"transfer-encoding: chunked" in head:
            if not body.endswith(b"0\r\n\r\n"):
                return
            assert body.count(b"data: [DONE]") == 1
        else:
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            if len(body) < length:
                return
        assert head.startswith(b"HTTP/1.1 %d " % self.status), head
        self.next()

    def reset(self) -> None:
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.done.set_result(None)


class Load:
    """`count` requests from fifty clients at once; those that leave come back over a new connection."""

    def __init__(self, server: HttpServer, count: int, seed: int) -> None:
        host, _, port = server.url.removeprefix("http://").partition(":")
        self.address = (host, int(port))
        self.left = count
        self.random = random.Random(seed)
        self.kinds = [*KINDS, "stream", "stream", "plain", "plain", "abort", "abort unsent"]
        self.failures: list[dict[str, Any]] = []

    def draw(self) -> str | None:
        if not self.left:
            return None
        self.left -= 1
        return self.random.choice(self.kinds)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        clients = asyncio.gather(*(self.client() for _ in range(CLIENTS)))

        def fail(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            self.failures.append(context)
            clients.cancel()

        loop.set_exception_handler(fail)
        try:
            with suppress(asyncio.CancelledError):
                await clients
        finally:
            loop.set_exception_handler(None)
        assert not self.failures, self.failures[0]

    async def client(self) -> None:
        loop = asyncio.get_running_loop()
        while self.left:
            _, client = await loop.create_connection(lambda: Client(self), *self.address)
            await client.done


@pytest.mark.timeout(600)
async def test_tasks_descriptors_slots_and_memory_are_afterwards_as_before(serving):
    process = psutil.Process()
    async with serving(ECHO) as server:
        await Load(server, WARM_UP, seed=1).run()
        await settled(server)
        tasks, descriptors, threads = len(asyncio.all_tasks()), process.num_fds(), process.num_threads()

        growths = []
        for seed in range(ROUNDS):
            before = resident(process)
            await Load(server, REQUESTS // ROUNDS, seed=2 + seed).run()
            await settled(server)
            growths.append(resident(process) - before)

        assert len(asyncio.all_tasks()) == tasks
        assert process.num_fds() == descriptors
        assert process.num_threads() <= threads + 2
        assert queue_lengths(server) == (0, 0)
        assert [worker.load().engine.running for worker in server.application.workers] == [0]
        assert min(growths) < GROWTH_BYTES, growths


@pytest.mark.parametrize("place", ["one worker", "two workers", "two hosts"])
async def test_what_was_held_for_a_request_goes_without_the_collector(serving, place: str):
    """What waits for it is memory that is not used again while it is warm: a tenth of what a plain request costs."""
    async with AsyncExitStack() as stack:
        if place == "two hosts":
            there = await stack.enter_async_context(serving(cluster.controller()))
            server = await stack.enter_async_context(serving(cluster.api(there.url)))
            for _ in range(2):
                await stack.enter_async_context(serving(cluster.worker(there.url)))
        else:
            server = await stack.enter_async_context(serving(ECHO if place == "one worker" else ECHO + WORKER))
        count = 1 if place == "one worker" else 2
        await until(lambda: ready(server) == count, within_s=10)
        await Load(server, 200, seed=1).run()
        await settled(server)
        with cyclic_garbage() as left:
            await Load(server, 500, seed=2).run()
            await settled(server)
    assert left == {}


def ready(server: HttpServer) -> int:
    return sum(worker.state is WorkerState.READY for worker in server.application.registry.serving("echo"))


async def settled(server: HttpServer) -> None:
    """All clients have gone, and the server knows."""
    await until(lambda: server.open_connections == 0 and queue_lengths(server) == (0, 0), within_s=5)
    await until(lambda: server.open_requests == 0, within_s=5)


def resident(process: psutil.Process) -> int:
    gc.collect()
    return int(process.memory_info().rss)
