"""F30: the process is told to stop while it is busy. What was accepted ends whole, or with an error that says so, and
whoever insists is obeyed. More of it, for slow lines and for idle connections, is in `tests/test_server.py`."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack

import pytest

from fastchat_serve.server import SAME_SIGNAL_S
from tests.end_to_end.process import install_plugin, started
from tests.end_to_end.raw import Connection, connected, expect_error, get, post
from tests.faults.ledger import Ending, ending

pytestmark = pytest.mark.anyio

STREAMS = 200
TEXT = " ".join(map(str, range(150)))
CONFIG = f"""
[server]
port = 0
[controller]
[api]
[[worker]]
backend = "echo"
concurrency = {STREAMS}
queue = {STREAMS}
options.delay_ms = 20
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def completion(**more) -> bytes:
    return post("/v1/completions", {"model": "echo", "prompt": TEXT, "max_tokens": 9999, "stream": True} | more)


async def under_way(stack: AsyncExitStack, url: str, count: int, **more) -> list[Connection]:
    """`count` requests that the server holds, running or waiting."""
    clients = [await stack.enter_async_context(connected(url)) for _ in range(count)]
    for client in clients:
        client.send(completion(**more))
    asking = await stack.enter_async_context(connected(url))
    async with asyncio.timeout(20):
        while True:
            (worker,) = (await asking.request(get("/cluster/workers"))).json()["workers"]
            if worker["running"] + worker["waiting"] == count:
                return clients


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
async def test_f30_two_hundred_streams_and_as_many_that_wait_lose_nothing(config, number):
    """G7."""
    async with started("--config", config) as server, AsyncExitStack() as stack:
        url = await server.url()
        late = await stack.enter_async_context(connected(url))
        assert (await late.request(get("/ready"))).status == 200
        clients = await under_way(stack, url, STREAMS + STREAMS // 2)
        server.process.send_signal(number)
        await server.says("finishing accepted work")
        refused = await late.request(completion())
        ready = await late.request(get("/ready"))
        endings = [ending(reply) for reply in await asyncio.gather(*(client.reply() for client in clients))]
        code = await server.ended()

    expect_error(refused, 503, "no_worker")
    assert int(refused.headers["retry-after"]) >= 1
    assert ready.status == 503
    assert endings == [Ending(TEXT)] * len(clients)
    assert code == 0, server.log


async def test_f30_a_second_signal_ends_all_of_them_with_one_error_each(config):
    async with started("--config", config, "--set", "worker.0.options.loop=true") as server, AsyncExitStack() as stack:
        clients = await under_way(stack, await server.url(), STREAMS + STREAMS // 2)
        server.process.send_signal(signal.SIGTERM)
        await server.says("finishing accepted work")
        await asyncio.sleep(SAME_SIGNAL_S)  # sooner it would be taken for the same one, passed on twice
        server.process.send_signal(signal.SIGTERM)
        await server.says("stopping now")
        endings = [ending(reply) for reply in await asyncio.gather(*(client.reply() for client in clients))]
        code = await server.ended()

    assert {end.code for end in endings} == {"shutting_down"}
    assert code == 0, server.log


STUBBORN = """
import anyio
from fastchat_serve import CONTRACT, hookimpl
from fastchat_serve.engines.echo import EchoEngine, EchoOptions

class Stubborn(EchoEngine):
    async def __aexit__(self, *exc_info):
        with anyio.CancelScope(shield=True):
            await anyio.sleep_forever()

@hookimpl
def register_engines(register):
    register("stubborn", lambda setup: Stubborn(), contract=CONTRACT)
"""


async def test_f30_a_third_signal_kills_though_the_engine_does_not_close(config, tmp_path):
    install_plugin(tmp_path, "stubborn", STUBBORN)
    options = ("--set", "worker.0.backend=stubborn", "--set", "worker.0.options={}")
    async with started("--config", config, *options, plugins=tmp_path) as server:
        await server.url()
        server.process.send_signal(signal.SIGTERM)
        await server.says("finishing accepted work")
        await asyncio.sleep(SAME_SIGNAL_S)
        server.process.send_signal(signal.SIGTERM)
        await server.says("stopping now")
        await asyncio.sleep(SAME_SIGNAL_S)
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == -signal.SIGTERM
