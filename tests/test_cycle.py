"""Replies on a connection: framing, order, early ends, and that nothing of a request is left behind."""

from __future__ import annotations

import asyncio
import gc

import pytest

from fastchat_serve.connection import ConnectionLimits
from tests.conftest import ECHO
from tests.end_to_end.raw import connected, events, expect_error, get, post
from tests.end_to_end.waiting import queue_lengths, until

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
ASKED = {"model": "echo", "messages": [{"role": "user", "content": "to be or not"}], "stream": True}
ENDLESS = ECHO + "options = {loop = true, delay_ms = 2}\n"
KEYS = ECHO.replace("[api]", '[api]\nkeys = ["sk-right"]')


async def test_every_token_is_a_chunk_and_the_head_leaves_with_the_first(serving):
    async with serving(ENDLESS) as server, connected(server) as client:
        client.send(post(CHAT, ASKED | {"max_tokens": 20}))
        status, headers = await client.head()
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        pieces = [piece async for piece in pieces_of(client)]

    assert len(pieces) == 20
    assert events(b"".join(pieces))[-1] == "[DONE]"


async def pieces_of(client):
    while piece := await client.piece():
        yield piece


async def test_a_client_of_http_1_0_gets_a_body_without_chunks_that_ends_with_the_connection(serving):
    async with serving(ECHO) as server, connected(server) as client:
        client.send(post(CHAT, ASKED).replace(b"HTTP/1.1", b"HTTP/1.0"))
        _, headers = await client.head()
        body = await client.closed()

    assert "transfer-encoding" not in headers
    assert headers["connection"] == "close"
    assert events(body)[-1] == "[DONE]"


async def test_head_of_a_route_without_it_has_an_error_without_a_body(serving):
    async with serving(ECHO) as server, connected(server) as client:
        client.send(get("/v1/models", "HEAD") + get("/health"))
        first, _ = await client.head()
        second = await client.reply()

    assert (first, second.status) == (405, 200)


async def test_replies_come_in_the_order_of_their_requests(serving):
    """F39: hot and other routes alike, and those that fail at once."""
    async with serving(ENDLESS) as server, connected(server) as client:
        client.send(
            post(CHAT, ASKED | {"max_tokens": 30})
            + get("/health")
            + post(CHAT, b"{")
            + post(CHAT, ASKED | {"max_tokens": 3})
        )
        stream, health, wrong, last = [await client.reply() for _ in range(4)]

    assert len(events(stream.body)) > len(events(last.body))
    assert health.json() == {"status": "ok"}
    expect_error(wrong, 400)


async def test_nonsense_after_requests_is_answered_after_their_replies(serving):
    """S13: a stream under way is not cut in two by the error for what comes behind it."""
    async with serving(ENDLESS) as server, connected(server) as client:
        client.send(post(CHAT, ASKED | {"max_tokens": 50}) + b"NONSENSE\r\n\r\n" + get("/health"))
        stream = await client.reply()
        status, _ = await client.head()
        rest = await client.closed()

    assert events(stream.body)[-1] == "[DONE]"
    assert status == 400
    assert b"HTTP/1.1" not in rest


@pytest.mark.parametrize("method", ["none", "wrong"])
async def test_who_has_no_key_is_told_so_before_the_body_is_there(serving, method):
    """G16: nothing of it is read, and the reply is not lost with the connection (RFC 9112, section 9.6)."""
    headers = {"authorization": "Bearer sk-wrong"} if method == "wrong" else {}
    limits = ConnectionLimits(linger_s=0.1)
    async with serving(KEYS, limits=limits) as server, connected(server) as client:
        client.send(post(CHAT, b"", **headers).replace(b"content-length: 0", b"content-length: 5000000"))
        reply = await client.reply()
        expect_error(reply, 401)
        assert reply.headers["connection"] == "close"
        client.send(b" " * 100_000)
        assert await client.closed_by_reset_or_end() == b""
        await until(lambda: server.open_connections == 0, within_s=5)


@pytest.mark.parametrize("said", [True, False])
async def test_a_body_that_is_too_long_is_refused_as_soon_as_that_is_known(serving, said):
    toml = "[server]\nmax_body_bytes = 1000\n" + ECHO
    async with serving(toml) as server, connected(server) as client:
        head = post(CHAT, b"")
        if said:
            client.send(head.replace(b"content-length: 0", b"content-length: 1001"))
        else:
            client.send(head.replace(b"content-length: 0", b"transfer-encoding: chunked") + b"400\r\n" + b" " * 1024)
        expect_error(await client.reply(), 413)
        assert await client.closed_by_reset_or_end() == b""


async def test_a_client_that_never_reads_is_given_up(serving):
    """F12, F38: its stream has ended with an error that it does not read either."""
    toml = ECHO + "options = {loop = true}\n"
    asked = {"model": "echo", "prompt": "x" * 4000, "max_tokens": 100_000, "stream": True}
    limits = ConnectionLimits(send_s=0.3)
    async with serving(toml, limits=limits) as server, connected(server, receive_buffer=4096) as stuck:
        stuck.send(post("/v1/completions", asked))
        await until(lambda: queue_lengths(server) == (1, 0))
        await until(lambda: server.open_connections == 0, within_s=20)
        assert queue_lengths(server) == (0, 0)


async def test_a_request_leaves_no_cyclic_garbage(serving):
    """Or the collector would walk through it while streams wait."""
    requests = [
        post(CHAT, ASKED),
        post(CHAT, ASKED | {"stream": False, "n": 3}),
        post(CHAT, b"{"),
        post(CHAT, ASKED | {"model": "x"}),
        post("/v1/completions", {"model": "echo", "prompt": "a b"}),
    ]
    async with serving(ECHO) as server, connected(server) as client:
        for request in requests:
            await client.request(request)
        gc.collect()
        gc.disable()
        try:
            for request in requests * 20:
                await client.request(request)
            await asyncio.sleep(0)
            found = gc.collect()
        finally:
            gc.enable()

    assert found < 20, "objects, over 100 requests"


async def test_many_requests_without_a_body_are_no_overhead_of_the_next_one_with_one(serving):
    async with serving(ECHO) as server, connected(server) as client:
        for _ in range(40):
            client.send(get("/health", x="y" * 2000) * 10)
            for _ in range(10):
                assert (await client.reply()).status == 200
        head, blank, body = post(CHAT, ASKED).partition(b"\r\n\r\n")
        client.send(head + blank)
        await until(lambda: server.open_requests == 1)
        client.send(body)
        assert (await client.reply()).status == 200


async def test_a_stream_before_nonsense_may_take_longer_than_a_head(serving):
    limits = ConnectionLimits(head_s=0.1)
    async with serving(ENDLESS, limits=limits) as server, connected(server) as client:
        client.send(post(CHAT, ASKED | {"max_tokens": 700}) + b"NONSENSE\r\n\r\n")
        stream = await client.reply()
        status, _ = await client.head()

    assert events(stream.body)[-1] == "[DONE]"
    assert status == 400


async def test_a_client_that_reads_slowly_but_steadily_gets_all_of_a_long_reply(serving):
    """The time limit is for reading nothing, not for the whole."""
    toml = "[[worker]]\nbackend = 'echo'\nnames = ['long']\noptions.dimensions = 4096\n" + ECHO
    limits = ConnectionLimits(send_s=0.6)
    asked = {"model": "long", "input": ["a"] * 200}
    async with serving(toml, limits=limits) as server, connected(server, receive_buffer=2**16) as client:
        client.send(post("/v1/embeddings", asked))
        _, headers = await client.head()
        left, began = int(headers["content-length"]), asyncio.get_running_loop().time()
        while left:
            left -= len(await client.reader.read(min(left, 2**18)))
            await asyncio.sleep(0.05)  # a slow line
        assert asyncio.get_running_loop().time() - began > 1.2, "or this tests nothing"


async def test_a_url_without_a_path_is_that_of_the_root(serving):
    """RFC 9112, section 3.2.2."""
    async with serving(ECHO) as server, connected(server) as client:
        client.send(b"GET http://localhost HTTP/1.1\r\nhost: localhost\r\n\r\n")
        expect_error(await client.reply(), 404)


async def test_a_client_of_http_1_0_is_never_told_to_continue(serving):
    """RFC 9110, section 10.1.1."""
    async with serving(ECHO) as server, connected(server) as client:
        head, blank, body = post(CHAT, ASKED, expect="100-continue").replace(b"1.1", b"1.0", 1).partition(b"\r\n\r\n")
        client.send(head + blank)
        await until(lambda: server.open_requests == 1)
        client.send(body)
        status, _ = await client.head()
    assert status == 200
