"""Connections that are rude below HTTP: long heads, slow heads, nonsense, pipelines that break off."""

from __future__ import annotations

import asyncio
import time

import pytest

from fastchat_serve.connection import ConnectionLimits
from tests.conftest import ECHO
from tests.end_to_end.raw import connected, get, post
from tests.end_to_end.waiting import queue_lengths, until

pytestmark = pytest.mark.anyio

MAX_HEAD_BYTES = ConnectionLimits().head_bytes
GOOD = get("/health")
ENDLESS = ECHO + "options = {loop = true, delay_ms = 2}\n"


def error_of(received: bytes) -> bytes:
    """The body of a 400 in OpenAI's shape, after which the server closed."""
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 "), received[:200]
    assert b"connection: close" in head
    assert body.startswith(b'{"error":{"message":')
    return body


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"y" * MAX_HEAD_BYTES + b": x\r\n\r\n",
        b"GET /health?" + b"y" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 40_000 + b"\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 5_000_000,
    ],
    ids=["value", "name", "query", "many", "endless"],
)
async def test_a_head_that_is_too_long_is_refused_in_one_read_or_many(serving, head):
    """S12."""
    async with serving(ECHO) as server, connected(server) as connection:
        for start in range(0, len(head), 30_000):
            connection.send(head[start : start + 30_000])
        error_of(await connection.closed_by_reset_or_end())
        async with connected(server) as other:
            assert (await other.request(GOOD)).status == 200


async def test_a_head_within_the_limit_is_taken(serving):
    async with serving(ECHO) as server, connected(server) as connection:
        assert (await connection.request(get("/health", x="y" * (MAX_HEAD_BYTES - 200)))).status == 200
        large = post("/v1/completions", {"model": "echo", "prompt": "x" * 2 * MAX_HEAD_BYTES})
        assert (await connection.request(large)).status == 200


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    ],
)
async def test_what_is_not_http_is_refused_in_openais_shape_and_answered_once(serving, nonsense):
    """S13: nothing after broken framing is taken for a request."""
    async with serving(ECHO) as server, connected(server) as connection:
        connection.send(nonsense + GOOD)
        received = await connection.closed_by_reset_or_end()
        error_of(received)
        assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "part", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nhost: loc"], ids=["none", "line", "header"]
)
async def test_a_head_that_does_not_come_is_not_waited_for(serving, part):
    """F38: connection without a request, and a head that stops in the middle."""
    async with serving(ECHO, limits=ConnectionLimits(head_s=0.3)) as server, connected(server) as connection:
        connection.send(part)
        began = time.monotonic()
        assert await connection.closed_by_reset_or_end() == b""
        assert time.monotonic() - began < 5


async def test_a_head_that_drips_is_not_waited_for_either(serving):
    """F38: a byte now and then does not keep it open."""
    async with serving(ECHO, limits=ConnectionLimits(head_s=0.3)) as server, connected(server) as connection:
        began = time.monotonic()
        async with asyncio.timeout(10):
            while server.open_connections or time.monotonic() - began < 0.1:
                connection.send(b"x")
                await asyncio.sleep(0.02)  # this is the drip


BODY = b'{"model": "echo", "prompt": "to be"}'
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
LENGTH = HEAD + b"content-length: %d\r\n\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize("part", [LENGTH % 100, LENGTH % 100 + BODY, CHUNKED], ids=["none", "half", "unfinished"])
async def test_a_body_that_stops_in_the_middle_is_not_waited_for(serving, part):
    """F38."""
    async with serving(ECHO, limits=ConnectionLimits(body_s=0.3)) as server, connected(server) as connection:
        connection.send(part)
        async with asyncio.timeout(5):
            await connection.closed_by_reset_or_end()
        await until(lambda: server.open_requests == 0)


async def test_a_body_that_drips_is_not_waited_for_either(serving):
    """F38."""
    async with serving(ECHO, limits=ConnectionLimits(body_s=0.3)) as server, connected(server) as connection:
        connection.send(LENGTH % 100_000)
        await until(lambda: server.open_requests == 1)
        async with asyncio.timeout(5):
            while server.open_requests:
                connection.send(b" ")
                await asyncio.sleep(0.02)  # this is the drip


async def test_a_body_may_take_longer_than_its_time_limit_if_it_keeps_coming(serving):
    async with (
        serving(ECHO, limits=ConnectionLimits(body_s=0.5, part_bytes=1000)) as server,
        connected(server) as connection,
    ):
        body = BODY + b" " * 20_000
        connection.send(LENGTH % len(body))
        for start in range(0, len(body), 2000):
            connection.send(body[start : start + 2000])
            await asyncio.sleep(0.1)  # a slow line
        assert (await connection.reply()).status == 200
        assert (await connection.request(GOOD)).status == 200


async def test_a_body_that_we_do_not_read_is_not_taken_for_slow(serving):
    """A long one that waits in the pipeline; the stream before it must not pay for that."""
    body = BODY + b" " * 500_000
    stream = post("/v1/completions", {"model": "echo", "prompt": "x", "max_tokens": 600})
    async with serving(ENDLESS, limits=ConnectionLimits(body_s=0.5)) as server, connected(server) as connection:
        connection.send(stream + LENGTH % len(body) + body)
        assert (await connection.reply()).status == 200, "longer than the limit for bodies"
        assert (await connection.reply()).status == 200


@pytest.mark.parametrize("trailers", [b"a: b\r\n" * 40_000, b"a: " + b"b" * 200_000], ids=["many", "long"])
async def test_trailers_without_end_are_refused(serving, trailers):
    """S12: what comes after a chunked body has a limit as well."""
    async with serving(ENDLESS) as server, connected(server) as connection:
        for start in range(0, len(trailers), 30_000):
            connection.send((CHUNKED if start == 0 else b"") + trailers[start : start + 30_000])
        error_of(await connection.closed_by_reset_or_end())


async def test_trailers_are_passed_over(serving):
    async with serving(ECHO) as server, connected(server) as connection:
        connection.send(CHUNKED + b"x-request-id: trailer\r\n\r\n")
        reply = await connection.reply()
        assert reply.status == 200
        assert reply.headers["x-request-id"] != "trailer"
        assert (await connection.request(GOOD)).status == 200


async def test_more_headers_than_anyone_needs_are_refused(serving):
    """S12."""
    async with serving(ECHO) as server, connected(server) as connection:
        connection.send(b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 200 + b"\r\n")
        error_of(await connection.closed_by_reset_or_end())


OFFER = b"connection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\nupgrade: %s\r\nhost:"


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize("request_", [LENGTH % len(BODY) + BODY, CHUNKED + b"\r\n"], ids=["length", "chunked"])
async def test_an_offer_of_another_protocol_is_passed_over(serving, request_, apart, protocol):
    """Java's HTTP client makes one with its first request on every connection."""
    offering = request_.replace(b"host:", OFFER % protocol)
    async with serving(ECHO) as server, connected(server) as connection:
        head, blank, body = offering.partition(b"\r\n\r\n")
        for part in (head + blank, body) if apart else (offering,):
            connection.send(part)
            await asyncio.sleep(0.05 * apart)  # so that the parts arrive apart
        reply = await connection.reply()
        assert (reply.status, b"to be" in reply.body) == (200, True)
        assert (await connection.request(GOOD)).status == 200


async def test_offers_of_another_protocol_may_be_pipelined(serving):
    """G17: thousands in one read cost neither a stack nor a stall."""
    offering = GOOD.replace(b"host:", OFFER % b"h2c", 1)
    assert offering != GOOD
    async with serving(ECHO) as server, connected(server) as connection:
        connection.send((offering + LENGTH % len(BODY) + BODY) * 1000)
        assert {(await connection.reply()).status for _ in range(2000)} == {200}


@pytest.mark.parametrize("target", [b"localhost:22", b"/health"])
async def test_a_tunnel_is_refused(serving, target):
    async with serving(ECHO) as server, connected(server) as connection:
        connection.send(b"CONNECT %s HTTP/1.1\r\nhost: localhost\r\n\r\n" % target)
        error_of(await connection.closed_by_reset_or_end())


async def test_a_kept_connection_is_not_taken_for_a_slow_head(serving):
    async with serving(ENDLESS, limits=ConnectionLimits(head_s=0.1)) as server, connected(server) as connection:
        assert (await connection.request(GOOD)).status == 200
        connection.send(post("/v1/completions", {"model": "echo", "prompt": "x", "max_tokens": 200}))
        assert (await connection.reply()).status == 200, "longer than the limit for heads"
        assert (await connection.request(GOOD)).status == 200


async def test_leaving_a_pipeline_frees_the_request_under_way(serving):
    """G4: also if another request waits behind it on the same connection."""
    stream = post("/v1/completions", {"model": "echo", "prompt": "x", "max_tokens": 10**5, "stream": True})
    async with serving(ENDLESS) as server, connected(server) as connection:
        connection.send(stream * 3)
        await until(lambda: queue_lengths(server) == (1, 0))
        await connection.head()
        connection.reset()
        await until(lambda: queue_lengths(server) == (0, 0) and server.open_requests == 0)
