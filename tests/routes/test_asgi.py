"""Hot routes under a server that is not ours: the same bytes, by way of ASGI alone."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
import uvicorn

from fastchat_serve.server import HttpServer
from tests.conftest import ECHO
from tests.end_to_end.raw import connected, events, expect_error, post
from tests.end_to_end.waiting import queue_lengths, until

pytestmark = pytest.mark.anyio

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "to be or not to be"}]}
ENDLESS = ECHO + "options = {loop = true, delay_ms = 1}\n"
CHANGES = re.compile(rb'"(id|created)":("[^"]+"|\d+)')


@asynccontextmanager
async def under_uvicorn(server: HttpServer) -> AsyncIterator[str]:
    """The application of `server`, whose workers run already, under uvicorn's own protocol as well."""
    plain = uvicorn.Server(uvicorn.Config(server.application.asgi, port=0, lifespan="off", log_config=None))
    plain.capture_signals = lambda: anyio.CancelScope()  # type: ignore[method-assign]  # not in a test
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(plain.serve)
        await until(lambda: plain.started, within_s=10)
        try:
            port = plain.servers[0].sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}"
        finally:
            plain.should_exit = True


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_replies_are_the_same_as_under_our_server(serving, path, stream):
    asked = (CHAT if "chat" in path else {"model": "echo", "prompt": "a b c", "max_tokens": 9}) | {"stream": stream}
    async with (
        serving(ECHO) as server,
        under_uvicorn(server) as url,
        connected(url) as theirs,
        connected(server) as ours,
    ):
        here, there = await ours.request(post(path, asked)), await theirs.request(post(path, asked))

    assert (here.status, there.status) == (200, 200)
    assert CHANGES.sub(b"", here.body) == CHANGES.sub(b"", there.body)
    assert here.headers["content-type"] == there.headers["content-type"]


async def test_a_client_that_leaves_frees_its_slot(serving):
    """G4."""
    async with serving(ENDLESS) as server, under_uvicorn(server) as url:
        for stream in (True, False):
            async with connected(url) as client:
                client.send(post("/v1/chat/completions", CHAT | {"stream": stream, "max_tokens": 10**5}))
                await until(lambda: queue_lengths(server) == (1, 0))
            await until(lambda: queue_lengths(server) == (0, 0))


async def test_errors_before_and_within_a_stream_are_the_same(serving):
    failing = ECHO + "options = {fail_at = 2}\n"
    async with serving(failing) as server, under_uvicorn(server) as url, connected(url) as client:
        reply = await client.request(post("/v1/chat/completions", CHAT | {"stream": True}))
        expect_error(await client.request(post("/v1/chat/completions", b"{")), 400)
        expect_error(await client.request(post("/v1/chat/completions", CHAT | {"model": "x"})), 404)

    *_, last = events(reply.body)
    assert last["error"]["code"] == "engine_failed"


async def test_a_path_that_is_spelled_in_another_way_goes_the_same_road(serving):
    """Only the exact path is short-cut; the router knows the others."""
    async with serving(ECHO) as server, connected(server) as client:
        replies = [
            await client.request(post(path, CHAT))
            for path in ("/v1/chat/completions", "/v1/chat/completions?x=1", "/v1/chat/%63ompletions")
        ]

    assert [reply.status for reply in replies] == [200, 200, 200]
    assert len({json.loads(reply.body)["choices"][0]["message"]["content"] for reply in replies}) == 1
