"""A client that leaves, in whatever way and at whatever point, frees its slot at once (G4, F13)."""

from __future__ import annotations

import json
from contextlib import aclosing

import msgspec
import pytest

from fastchat_serve import CONTRACT, Capability
from fastchat_serve.engines.echo import EchoEngine, EchoOptions
from fastchat_serve.plugins import Backend, Plugins
from tests.end_to_end.raw import Connection, connected, get, post
from tests.end_to_end.waiting import queue_lengths, until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """The standard loop, and the one that `fastchat-serve` runs on."""
    return "asyncio", {"use_uvloop": request.param}


ENDLESS = """
[controller]
[api]
[[worker]]
backend = "echo"
concurrency = 2
queue = 8
options = {loop = true, delay_ms = 2}
"""
"""Whatever runs here runs until it is aborted."""

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "on and on"}]}


def leave(connection: Connection, how: str) -> None:
    if how == "RST":
        connection.reset()
    else:
        connection.writer.close()


def aborted(server) -> int:
    """Engines hear of an abort; a slot that is free while the engine works on would be worthless."""
    return sum(worker.load().engine.running for worker in server.application.workers)


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 2])
async def test_leaving_while_the_answer_is_made_frees_its_slots(serving, how, stream, n):
    async with serving(ENDLESS) as server, connected(server) as connection:
        connection.send(post("/v1/chat/completions", CHAT | {"stream": stream, "n": n}))
        await until(lambda: queue_lengths(server) == (n, 0))
        if stream:
            await connection.head()
            await connection.piece()
        leave(connection, how)
        await until(lambda: queue_lengths(server) == (0, 0) and not aborted(server))


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_the_queue_frees_the_place(serving, how, stream):
    async with serving(ENDLESS) as server, connected(server) as first, connected(server) as waiting:
        first.send(post("/v1/chat/completions", CHAT | {"n": 2}))
        await until(lambda: queue_lengths(server) == (2, 0))
        waiting.send(post("/v1/chat/completions", CHAT | {"stream": stream}))
        await until(lambda: queue_lengths(server) == (2, 1))
        leave(waiting, how)
        await until(lambda: queue_lengths(server) == (2, 0))
        leave(first, how)
        await until(lambda: queue_lengths(server) == (0, 0))


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize(
    "part", [b"", b"POST /v1/ch", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x", "half the body"], ids=str
)
async def test_leaving_before_the_request_is_whole_leaves_nothing_behind(serving, how, part):
    whole = post("/v1/chat/completions", CHAT)
    async with serving(ENDLESS) as server:
        connections = server.open_connections
        async with connected(server) as connection:
            connection.send(whole[:-20] if part == "half the body" else part)
            await until(lambda: server.open_connections == connections + 1)
            leave(connection, how)
            await until(lambda: server.open_connections == connections)
        assert queue_lengths(server) == (0, 0)


async def test_the_next_in_the_queue_takes_over_the_slot(serving):
    toml = ENDLESS.replace("concurrency = 2", "concurrency = 1")
    async with serving(toml) as server, connected(server) as first, connected(server) as second:
        first.send(post("/v1/chat/completions", CHAT | {"stream": True}))
        await first.head()
        second.send(post("/v1/chat/completions", CHAT | {"stream": True}))
        await until(lambda: queue_lengths(server) == (1, 1))
        first.reset()
        assert (await second.head())[0] == 200
        assert b"assistant" in await second.piece()


async def test_leaving_an_embedding_frees_its_place(serving):
    toml = ENDLESS.replace("concurrency = 2", "concurrency = 1")
    async with serving(toml) as server, connected(server) as first, connected(server) as second:
        first.send(post("/v1/chat/completions", CHAT))
        await until(lambda: queue_lengths(server) == (1, 0))
        second.send(post("/v1/embeddings", {"model": "echo", "input": "x"}))
        await until(lambda: queue_lengths(server) == (1, 1))
        second.reset()
        await until(lambda: queue_lengths(server) == (1, 0))


class Pulled:
    """An engine in the contract's plain form, without `start`; notes which streams were closed."""

    def __init__(self, inner: EchoEngine) -> None:
        self._inner = inner
        can = frozenset({Capability.GENERATE, Capability.CHAT})
        self.info = msgspec.structs.replace(inner.info, capabilities=can)
        self.current_load, self.fatal_error = inner.current_load, None
        self.closed: list[str] = []

    async def __aenter__(self):
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *exc_info):
        await self._inner.__aexit__(*exc_info)

    async def generate_stream(self, request):
        try:
            async with aclosing(self._inner.generate_stream(request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self.closed.append(request.id)


@pytest.fixture
def pulled() -> Pulled:
    return Pulled(EchoEngine(EchoOptions(loop=True, delay_ms=2)))


@pytest.fixture
def plugins(pulled: Pulled) -> Plugins:
    plugins = Plugins()
    plugins.backends["echo"] = Backend("echo", lambda _: pulled, EchoOptions, CONTRACT)
    return plugins


async def test_an_engine_that_is_only_pulled_hears_of_it_too(serving, plugins, pulled):
    """The generator is closed when the client leaves."""
    async with serving(ENDLESS, plugins) as server, connected(server) as connection:
        connection.send(post("/v1/chat/completions", CHAT | {"stream": True}))
        await connection.head()
        await connection.piece()
        connection.reset()
        await until(lambda: queue_lengths(server) == (0, 0))
    assert len(pulled.closed) == 1


async def test_a_client_that_left_is_counted_as_such(serving):
    async with serving(ENDLESS) as server, connected(server) as connection:
        async with connected(server) as leaving:
            leaving.send(post("/v1/chat/completions", CHAT | {"stream": True}))
            await leaving.head()
            leaving.reset()
            await until(lambda: queue_lengths(server) == (0, 0))
        metrics = (await connection.request(get("/metrics"))).body.decode()
    labels = 'error_type="client_left",gen_ai_operation_name="chat",gen_ai_request_model="echo"'
    assert f"gen_ai_server_request_duration_seconds_count{{{labels}}} 1.0" in metrics, json.dumps(metrics[:2000])
