"""More than can be served: refused at once, in order, and said when to come back (G9, F28)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing

import pytest
from openai import AsyncOpenAI, InternalServerError, RateLimitError

from tests.end_to_end.raw import Connection, connected, events, expect_error, post
from tests.end_to_end.waiting import queue_lengths, until
from tests.faults.engine import FaultEngine, plugins_with, words
from tests.faults.ledger import Ending, completion, ending

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


CLIENTS, SLOTS, PLACES = 500, 8, 40
CROWDED = f"""
[controller]
[api]
[[worker]]
backend = "faulty"
concurrency = {SLOTS}
queue = {PLACES}
"""


class Counting(FaultEngine):
    """Attributes: `most`, ran at once; `started`, the prompts in order."""

    def __init__(self) -> None:
        super().__init__()
        self.running = self.most = 0
        self.started: list[str] = []

    async def generate_stream(self, request):
        self.running += 1
        self.most = max(self.most, self.running)
        self.started.append(request.prompt.text)
        try:
            async with aclosing(super().generate_stream(request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self.running -= 1


async def test_f28_of_500_clients_on_8_slots_everyone_is_served_whole_or_refused_and_no_slot_is_shared(serving):
    engine = Counting()
    async with serving(CROWDED, plugins_with(engine)) as server:

        async def client(number: int) -> Ending:
            async with connected(server) as connection:
                reply = await connection.request(completion(f"{number} " * 9, stream=number % 2 == 0))
            if reply.status != 200:
                expect_error(reply, 429, "queue_full")
                assert int(reply.headers["retry-after"]) >= 1
            return ending(reply)

        async with asyncio.timeout(60):
            endings = await asyncio.gather(*map(client, range(CLIENTS)))
        assert queue_lengths(server) == (0, 0)

    served = [number for number, end in enumerate(endings) if not end.code]
    assert all(endings[number].text == words(f"{number} " * 9) for number in served)
    assert len(served) == len(engine.started) >= SLOTS + PLACES
    assert engine.most <= SLOTS


async def test_f28_the_queue_is_served_in_order(serving):
    engine = Counting()
    toml = CROWDED.replace(f"concurrency = {SLOTS}", "concurrency = 1")
    async with serving(toml, plugins_with(engine)) as server, AsyncExitStack() as connections:
        first = await connections.enter_async_context(connected(server))
        first.send(completion("hang-deaf@0 first"))
        await until(lambda: queue_lengths(server) == (1, 0))
        waiting = []
        for number in range(PLACES):
            connection = await connections.enter_async_context(connected(server))
            connection.send(completion(str(number)))
            await until(lambda number=number: queue_lengths(server) == (1, number + 1))
            waiting.append(connection)
        engine.release.set()
        assert [ending(await connection.reply()).code for connection in waiting] == [""] * PLACES

    assert engine.started[1:] == [str(number) for number in range(PLACES)]


async def test_f28_who_fills_the_queue_does_not_lock_others_out(serving):
    """The newcomer takes the place of the newest of those with more than their share, and has its turn early."""
    engine = Counting()
    toml = CROWDED.replace(f"concurrency = {SLOTS}", "concurrency = 1").replace("[api]", '[api]\nkeys = ["a", "b"]')
    async with serving(toml, plugins_with(engine)) as server, AsyncExitStack() as connections:

        async def ask(key: str, prompt: str, length: int) -> Connection:
            connection = await connections.enter_async_context(connected(server))
            connection.send(completion(prompt, authorization=f"Bearer {key}"))
            await until(lambda: sum(queue_lengths(server)) == length)
            return connection

        greedy = [await ask("a", "hang-deaf@0 a", 1)]
        for number in range(PLACES):
            greedy.append(await ask("a", f"a{number}", 2 + number))
        modest = await ask("b", "b", 1 + PLACES)
        pushed_out = await greedy.pop().reply()
        refused = await connections.enter_async_context(connected(server))
        expect_error(await refused.request(completion("a", authorization="Bearer a")), 429, "queue_full")
        engine.release.set()
        assert ending(await modest.reply()) == Ending("b ")
        assert [ending(await connection.reply()).code for connection in greedy] == [""] * PLACES

    error = expect_error(pushed_out, 429, "queue_full")
    assert "gave up its place" in error["message"]
    assert int(pushed_out.headers["retry-after"]) >= 1
    assert engine.started[:4] == ["hang-deaf@0 a", "a0", "b", "a1"]
