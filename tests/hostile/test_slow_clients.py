"""F38: clients that hold a connection by being slow. Each is closed in its limit, and nobody else waits for it.

The limits are those of `ConnectionLimits`, scaled down; what they are by default is tested last.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable

import pytest

from fastchat_serve.connection import ConnectionLimits
from fastchat_serve.server import HttpServer
from tests.conftest import ECHO
from tests.end_to_end.raw import Connection, connected, get, post
from tests.end_to_end.waiting import queue_lengths, until

pytestmark = pytest.mark.anyio

LIMIT_S = 0.4
LIMITS = ConnectionLimits(head_s=LIMIT_S, body_s=LIMIT_S, keep_alive_s=LIMIT_S, send_s=LIMIT_S, linger_s=LIMIT_S)
SLACK_S = 2.0
"""Half a second that limits are kept to within, and a busy machine."""
DRIP_S = 0.02
SLOWEST_S = 1.0
"""For a good request meanwhile; it takes a millisecond on an idle machine."""

FAST = ECHO + "concurrency = 32\noptions = {loop = true}\n"
CHAT = "/v1/chat/completions"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
BODY = HEAD + b"content-length: 100000\r\n\r\n"
CHUNKS = HEAD + b"transfer-encoding: chunked\r\n\r\n"
LARGE = {"model": "echo", "prompt": "x" * 4000, "max_tokens": 5000}

# What a client sends at first, and what it then goes on to send in drips, for ever.
KINDS: dict[str, tuple[bytes, bytes]] = {
    "says nothing": (b"", b""),
    "stops in the request line": (b"GET /hea", b""),
    "stops in a header": (b"GET /health HTTP/1.1\r\nhost: loc", b""),
    "stops before the last line end": (b"GET /health HTTP/1.1\r\nhost: localhost\r\n", b""),
    "drips its request line": (b"GET /", b"x"),
    "drips a header": (b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: ", b"y"),
    "drips headers": (b"GET /health HTTP/1.1\r\nhost: localhost\r\n", b"x: y\r\n"),
    "drips empty lines": (b"", b"\r\n"),
    "stops before its body": (BODY, b""),
    "stops in its body": (BODY + b'{"model": ', b""),
    "drips its body": (BODY, b" "),
    "stops before a chunk": (CHUNKS, b""),
    "stops in a chunk": (CHUNKS + b"ff\r\n ", b""),
    "drips chunks": (CHUNKS, b"1\r\n \r\n"),
    "drips a chunk": (CHUNKS + b"ffff\r\n", b" "),
    "drips a chunk's extension": (CHUNKS + b"1;", b"x"),
    "drips trailers": (CHUNKS + b"0\r\n", b"x: y\r\n"),
    "stays after its reply": (get("/health"), b""),
    "stays after an error": (get("/nowhere"), b""),
    "stays after nonsense": (b"\0\0\0\0\r\n\r\n", b""),
    "sends on after nonsense": (b"\0\0\0\0\r\n\r\n", b"x"),
    "sends on after it was refused": (HEAD + b"content-length: 100000000\r\n\r\n", b"x"),
    "drips what is pipelined": (get("/health"), b"G"),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_f38_a_client_that(serving, kind):
    """Closed in its limit, with good requests answered all the while."""
    first, drip = KINDS[kind]
    async with serving(ECHO, limits=LIMITS) as server, good_requests(server):
        async with connected(server) as slow:
            slow.send(first)
            await until(lambda: server.open_connections == 2)
            assert await slowness(server, [slow], drip) < LIMIT_S + SLACK_S
        await until(lambda: server.open_requests <= 1 and queue_lengths(server) == (0, 0))


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain reply"])
async def test_f38_a_client_that_never_reads_its(serving, stream):
    """What lies in the transport is given up as well, not only the slot."""
    async with serving(FAST, limits=LIMITS) as server, good_requests(server):
        async with connected(server, receive_buffer=4096) as stuck:
            stuck.writer.transport.pause_reading()  # type: ignore[attr-defined]
            stuck.send(post("/v1/completions", LARGE | {"stream": stream}))
            await until(lambda: server.open_connections == 2)
            await until(lambda: server.open_connections <= 1, within_s=10)
        await until(lambda: queue_lengths(server)[0] <= 1)


async def test_f38_two_hundred_drippers_at_once(serving):
    kinds = list(KINDS.values())
    async with serving(ECHO, limits=LIMITS) as server, good_requests(server), contextlib.AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(connected(server)) for _ in range(200)]
        for number, connection in enumerate(slow):
            connection.send(kinds[number % len(kinds)][0])
        await until(lambda: server.open_connections > 150, within_s=5)
        assert await slowness(server, slow, b" ") < LIMIT_S + SLACK_S


def test_the_limits_are_not_longer_than_they_may_be():
    """The bars of row F38: 15 s for a head, 30 s for a body."""
    limits = ConnectionLimits()

    assert limits.head_s <= 15
    assert limits.body_s <= 30
    assert limits.send_s <= 30
    assert limits.linger_s <= 5
    assert limits.keep_alive_s <= 120


async def slowness(server: HttpServer, connections: Iterable[Connection], drip: bytes) -> float:
    """Drip into all connections until the server has closed them; the seconds that it took."""
    began = time.monotonic()
    async with asyncio.timeout(20):
        while server.open_connections > 1:
            for connection in connections:
                connection.send(drip)
            await asyncio.sleep(DRIP_S)  # this is the drip
    return time.monotonic() - began


@contextlib.asynccontextmanager
async def good_requests(server: HttpServer) -> AsyncIterator[None]:
    """One client that asks all the time, and is answered soon."""
    question = post(CHAT, {"model": "echo", "messages": [{"role": "user", "content": "to be"}], "max_tokens": 3})

    async def ask() -> None:
        async with connected(server) as connection:
            while True:
                began = time.monotonic()
                assert (await connection.request(question)).status == 200
                assert time.monotonic() - began < SLOWEST_S
                await asyncio.sleep(0.01)  # a pace that leaves the machine to the others

    asking = asyncio.create_task(ask())
    try:
        await until(lambda: server.open_connections == 1)
        yield
        assert not asking.done(), asking.exception()
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
