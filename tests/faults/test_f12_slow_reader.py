"""A client that stops reading costs a fixed amount, is cut off in order, and hurts nobody (G8, F12)."""

from __future__ import annotations

import asyncio

import psutil
import pytest

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
    words = " ".join(f"{number:06}" for number in range(2000))
    async with serving(toml) as server, connected(server, receive_buffer=4096) as slow:
        slow.send(post("/v1/completions", {"model": "echo", "prompt": words, "max_tokens": 5000, "stream": True}))
        await until(lambda: queue_lengths(server) == (1, 0))
        await until(lambda: queue_lengths(server) == (0, 0), within_s=20)
        *chunks, done = events((await slow.reply()).body)

    assert done == "[DONE]"
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == words


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
