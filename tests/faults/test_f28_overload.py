"""More than can be served: refused at once, in order, and said when to come back (G9, F28)."""

from __future__ import annotations

import asyncio

import pytest
from openai import AsyncOpenAI, InternalServerError, RateLimitError

from tests.end_to_end.raw import connected, events, expect_error, post
from tests.end_to_end.waiting import queue_lengths, until

pytestmark = pytest.mark.anyio

SMALL = """
[controller]
[api]
[[worker]]
backend = "echo"
concurrency = 2
queue = 3
options = {delay_ms = 2}
"""
ENDLESS = SMALL.replace("delay_ms", "loop = true, delay_ms")
LONG = {"model": "echo", "prompt": "x " * 200, "max_tokens": 1000}


async def test_beyond_slots_and_queue_it_is_a_429_that_says_when_to_come_back(serving):
    async with serving(ENDLESS) as server, connected(server) as first, connected(server) as second:
        first.send(post("/v1/completions", LONG | {"prompt": ["x"] * 5}))
        await until(lambda: queue_lengths(server) == (2, 3))
        for path, body in (
            ("/v1/completions", LONG),
            ("/v1/completions", LONG | {"stream": True}),
            ("/v1/chat/completions", {"model": "echo", "messages": [{"role": "user", "content": "x"}]}),
            ("/v1/embeddings", {"model": "echo", "input": "x"}),
        ):
            refused = await second.request(post(path, body))
            error = expect_error(refused, 429, "queue_full")
            assert error["type"] == "rate_limit_error"
            assert int(refused.headers["retry-after"]) >= 1
        assert queue_lengths(server) == (2, 3)


async def test_more_answers_than_could_ever_be_held_are_no_overload_but_a_mistake(serving):
    """Trying that again cannot help, so it is a 400."""
    async with serving(SMALL) as server, connected(server) as connection:
        expect_error(await connection.request(post("/v1/completions", LONG | {"n": 6})), 400)
        assert (await connection.request(post("/v1/completions", LONG | {"n": 5}))).status == 200


async def test_openais_client_sees_a_rate_limit_error(serving):
    async with serving(ENDLESS) as server, connected(server) as first:
        first.send(post("/v1/completions", LONG | {"prompt": ["x"] * 5}))
        await until(lambda: queue_lengths(server) == (2, 3))
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            with pytest.raises(RateLimitError) as refused:
                await client.completions.create(model="echo", prompt="x")
    assert refused.value.code == "queue_full"
    assert int(refused.value.response.headers["retry-after"]) >= 1


async def test_a_request_that_is_refused_in_part_holds_nothing(serving):
    """Three choices where two places are left: none of them stays."""
    async with serving(ENDLESS) as server, connected(server) as first, connected(server) as second:
        first.send(post("/v1/completions", LONG | {"prompt": ["x"] * 3}))
        await until(lambda: queue_lengths(server) == (2, 1))
        expect_error(await second.request(post("/v1/completions", LONG | {"n": 3})), 429)
        await until(lambda: queue_lengths(server) == (2, 1))


async def test_waiting_too_long_in_the_queue_is_a_typed_timeout(serving):
    """G12: the engine never hears of it."""
    toml = ENDLESS + "timeouts = {queue_s = 0.2}"
    async with serving(toml) as server, connected(server) as first:
        first.send(post("/v1/completions", LONG | {"prompt": ["x"] * 2}))
        await until(lambda: queue_lengths(server) == (2, 0))
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            with pytest.raises(InternalServerError) as late:
                await client.completions.create(model="echo", prompt="x")
    assert (late.value.status_code, late.value.code, late.value.type) == (504, "queue_timeout", "timeout_error")


async def test_under_ten_times_the_load_every_request_ends_whole_or_refused(serving):
    """G1, G9: 50 clients on 2 slots; all that were accepted are complete, and slots are never exceeded."""
    async with serving(SMALL) as server:
        most = 0

        async def client(number: int) -> int:
            nonlocal most
            async with connected(server) as connection:
                reply = await connection.request(
                    post(
                        "/v1/completions",
                        {"model": "echo", "prompt": f"{number} " * 20, "max_tokens": 99, "stream": number % 2 == 0},
                    )
                )
                most = max(most, queue_lengths(server)[0])
                if reply.status == 429:
                    assert int(reply.headers["retry-after"]) >= 1
                elif number % 2 == 0:
                    *chunks, done = events(reply.body)
                    assert done == "[DONE]"
                    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == f"{number} " * 20
                else:
                    assert reply.json()["choices"][0]["text"] == f"{number} " * 20
                return reply.status

        async with asyncio.timeout(30):
            statuses = await asyncio.gather(*map(client, range(50)))
        assert queue_lengths(server) == (0, 0)

    assert set(statuses) == {200, 429}
    assert most <= 2


async def test_lower_priority_numbers_are_served_first(serving):
    toml = SMALL.replace("concurrency = 2", "concurrency = 1")
    async with serving(toml) as server, connected(server) as first:
        first.send(post("/v1/completions", LONG))
        await until(lambda: queue_lengths(server) == (1, 0))
        order: list[int] = []

        async def client(priority: int) -> None:
            async with connected(server) as connection:
                reply = await connection.request(
                    post("/v1/completions", {"model": "echo", "prompt": "x", "priority": priority})
                )
                assert reply.status == 200
                order.append(priority)

        async with asyncio.TaskGroup() as tasks:
            for waiting, priority in enumerate((5, -5, 0), start=1):
                tasks.create_task(client(priority))
                await until(lambda waiting=waiting: queue_lengths(server) == (1, waiting))
    assert order == [-5, 0, 5]
