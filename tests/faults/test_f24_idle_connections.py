"""F24: ten thousand connections that do nothing cost little, and nobody who does something notices them. Without
descriptors for more, newcomers wait in the kernel's queue until there is room."""

from __future__ import annotations

import asyncio
import resource
from contextlib import AsyncExitStack

import psutil
import pytest

from tests.end_to_end.process import started
from tests.end_to_end.raw import connected, events, get, post

pytestmark = pytest.mark.anyio

WANTED = 10_000
EACH_BYTES = 30 * 1024
SPARE = 300
"""Descriptors that this process needs for other things."""
AT_ONCE = 200
CONFIG = '[server]\nport = 0\n[controller]\n[api]\n[[worker]]\nbackend = "echo"\n'
STREAM = post("/v1/completions", {"model": "echo", "prompt": "to be or not", "max_tokens": 99, "stream": True})


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def many():
    """As many as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(WANTED, (hard if hard != resource.RLIM_INFINITY else 10**6) - SPARE)
    if count < 1000:
        pytest.skip(f"only {hard} descriptors are allowed here")
    yield count
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_f24_ten_thousand_idle_connections_are_held_for_little_each(config, many):
    async with started("--config", config) as server, AsyncExitStack() as connections:
        url, process = await server.url(), psutil.Process(server.process.pid)
        asking = await connections.enter_async_context(connected(url))
        assert events((await asking.request(STREAM)).body)[-1] == "[DONE]"
        before, open_before = process.memory_info().rss, process.num_fds()
        idle = []
        for _ in range(0, many, AT_ONCE):
            few = [connected(url, receive_buffer=4096) for _ in range(AT_ONCE)]
            joined = [await connections.enter_async_context(connection) for connection in few]
            replies = await asyncio.gather(*(connection.request(get("/health")) for connection in joined))
            assert {reply.status for reply in replies} == {200}
            idle += joined
        grown, opened = process.memory_info().rss - before, process.num_fds() - open_before
        spent = sum(process.cpu_times()[:2])
        busy = [events((await asking.request(STREAM)).body)[-1] for _ in range(20)]
        still_alive = await idle[0].request(get("/health"))
        assert sum(process.cpu_times()[:2]) - spent < 5, "it spins"

    assert busy == ["[DONE]"] * 20
    assert still_alive.status == 200
    assert opened == len(idle)
    assert grown / len(idle) < EACH_BYTES


LIMIT, ROOM = 64, 32
"""Of 64 descriptors a quarter is for other things, and a quarter for what may come within one turn of the loop."""
WAITING = 10


async def test_f24_without_descriptors_for_more_newcomers_wait_and_nobody_is_hurt(config):
    async with (
        started("--config", config, shell=f'ulimit -n {LIMIT}; exec "$@"') as server,
        AsyncExitStack() as stack,
    ):
        url, process = await server.url(), psutil.Process(server.process.pid)
        served = [await stack.enter_async_context(connected(url)) for _ in range(ROOM)]
        replies = await asyncio.gather(*(connection.request(get("/health")) for connection in served))
        assert {reply.status for reply in replies} == {200}

        await server.says("newcomers wait")
        waiting = [await stack.enter_async_context(connected(url)) for _ in range(WAITING)]
        asked = [asyncio.create_task(connection.request(get("/health"))) for connection in waiting]
        spent = sum(process.cpu_times()[:2])
        for connection in served:  # they are served as ever
            assert events((await connection.request(STREAM)).body)[-1] == "[DONE]"
        assert sum(process.cpu_times()[:2]) - spent < 5, "it spins"
        assert not any(task.done() for task in asked), "nobody was turned away"
        assert process.num_fds() < LIMIT

        for connection in served[:WAITING]:
            connection.writer.close()
        assert {reply.status for reply in await asyncio.gather(*asked)} == {200}
        assert server.log.count("newcomers wait") == 1
