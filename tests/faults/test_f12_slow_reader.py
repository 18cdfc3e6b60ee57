"""A client that stops reading costs a fixed amount, is cut off in order, and hurts nobody (G8, F12)."""

from __future__ import annotations

import asyncio

import psutil
import pytest

from fastchat_serve.connection import ConnectionLimits
from fastchat_serve.routes.exchange import MAX_BACKLOG_BYTES
from tests.end_to_end.raw import connected, events, post
from tests.end_to_end.waiting import queue_lengths, until

pytestmark = pytest.mark.anyio

FAST = """
[controller]
[api]
[[worker]]
backend = "echo"
concurrency = 32
options = {loop = true}
"""
BIG = {"model": "echo", "prompt": "x" * 4000, "max_tokens": 100_000, "stream": True}
SHORT = {"max_tokens": 20}
WHOLE = "x" * 4000 * 20


async def test_its_slot_is_freed_its_stream_ends_with_an_error_and_others_go_on(serving):
    async with serving(FAST) as server, connected(server, receive_buffer=4096) as stuck, connected(server) as other:
        stuck.send(post("/v1/completions", BIG))
        await until(lambda: queue_lengths(server) == (1, 0))
        await until(lambda: queue_lengths(server) == (0, 0), within_s=20)

        good = await other.request(post("/v1/completions", BIG | {"max_tokens": 50}))
        assert events(good.body)[-1] == "[DONE]"

        # Now it reads after all: whole events up to where it was cut, one error, and the end.
        reply = await stuck.reply()
        *chunks, error = events(reply.body)
        assert error["error"]["code"] == "slow_reader"
        assert all(choice["finish_reason"] is None for chunk in chunks for choice in chunk["choices"])
        assert {choice["text"].strip() for chunk in chunks for choice in chunk["choices"]} == {"x" * 4000}


async def test_a_pause_shorter_than_the_limit_loses_nothing(serving):
    """G3: what piled up arrives, in order."""
    toml = FAST.replace("{loop = true}", "{}")
    words = " ".join(f"{number:06}" for number in range(1000))
    async with serving(toml) as server, connected(server, receive_buffer=4096) as slow:
        slow.send(post("/v1/completions", {"model": "echo", "prompt": words, "max_tokens": 5000, "stream": True}))
        await until(lambda: queue_lengths(server) == (1, 0))
        await until(lambda: queue_lengths(server) == (0, 0), within_s=20)
        *chunks, done = events((await slow.reply()).body)

    assert done == "[DONE]"
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == words


NEIGHBOURS = 8


async def test_f12_neighbours_of_one_that_never_reads_lose_nothing_and_it_is_closed_at_the_send_limit(serving):
    """It does not even leave: after the limit its connection is closed, with what was still to be sent."""
    limits = ConnectionLimits(send_s=0.5)
    async with serving(FAST, limits=limits) as server, connected(server, receive_buffer=2048) as stuck:
        connections = server.open_connections
        stuck.send(post("/v1/completions", BIG))
        await until(lambda: queue_lengths(server) == (1, 0))

        async def neighbour() -> None:
            async with connected(server) as connection:
                for _ in range(5):
                    *chunks, done = events((await connection.request(post("/v1/completions", BIG | SHORT))).body)
                    assert done == "[DONE]"
                    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == WHOLE

        async with asyncio.TaskGroup() as tasks:
            for _ in range(NEIGHBOURS):
                tasks.create_task(neighbour())
        await until(lambda: queue_lengths(server) == (0, 0), within_s=20)
        await until(lambda: server.open_connections == 0, within_s=20)
        assert connections == 1
        received = await stuck.closed_by_reset_or_end()

    assert len(received) < 2**18, "what the kernel kept for it"
    assert b"[DONE]" not in received


async def test_f12_who_pauses_for_three_seconds_and_reads_on_misses_nothing_that_was_kept(serving):
    """Its stream is longer than what may wait for it, so it ends with the error; up to there it is whole."""
    async with serving(FAST) as server, connected(server, receive_buffer=2048) as slow:
        slow.send(post("/v1/completions", BIG))
        await slow.head()
        await asyncio.sleep(3)  # this is the reader
        parts = []
        while part := await slow.piece():
            parts.append(part)

    *chunks, error = events(b"".join(parts))
    assert error["error"]["code"] == "slow_reader"
    assert {choice["text"].strip() for chunk in chunks for choice in chunk["choices"]} == {"x" * 4000}


async def test_twenty_stuck_readers_cost_a_bounded_amount_of_memory(serving):
    """G8: at most the backlog and the transport's buffer each."""
    process = psutil.Process()
    readers = 20
    async with serving(FAST) as server:
        async with connected(server) as warm_up:
            await warm_up.request(post("/v1/completions", BIG | {"max_tokens": 500}))
        before = process.memory_info().rss
        connections = [connected(server, receive_buffer=4096) for _ in range(readers)]
        try:
            stuck = [await connection.__aenter__() for connection in connections]
            for connection in stuck:
                connection.send(post("/v1/completions", BIG))
            await until(lambda: queue_lengths(server)[0] == readers, within_s=5)
            await until(lambda: queue_lengths(server) == (0, 0), within_s=30)
            grown = process.memory_info().rss - before
        finally:
            await asyncio.gather(*(connection.__aexit__(None, None, None) for connection in connections))

    # Twice, for the allocator's slack; an unbounded backlog would be 400 MB for each reader.
    assert grown < 2 * readers * (MAX_BACKLOG_BYTES + 2**17)
