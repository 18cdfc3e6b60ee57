"""F29: every client that is refused tries again at once. No work is done twice, and the storm ends when it is over."""

from __future__ import annotations

import asyncio

import pytest

from tests.end_to_end.raw import connected, expect_error
from tests.end_to_end.waiting import queue_lengths, until
from tests.faults.engine import FaultEngine, plugins_with, words
from tests.faults.ledger import Ending, completion, ending

pytestmark = pytest.mark.anyio

CLIENTS = 60
CONFIG = """
[controller]
[api]
[[worker]]
backend = "faulty"
concurrency = 2
queue = 4
"""


async def test_f29_everyone_is_served_in_the_end_and_the_engine_saw_each_once(serving):
    engine = FaultEngine()
    refusals = 0
    async with serving(CONFIG, plugins_with(engine)) as server:

        async def client(number: int) -> Ending:
            nonlocal refusals
            async with connected(server) as connection:
                while True:
                    reply = await connection.request(completion(f"{number} " * 30, stream=number % 2 == 0))
                    if reply.status == 200:
                        return ending(reply)
                    expect_error(reply, 429, "queue_full")
                    refusals += 1

        async with asyncio.timeout(60):
            endings = await asyncio.gather(*map(client, range(CLIENTS)))
        await until(lambda: queue_lengths(server) == (0, 0))
        async with connected(server) as connection:
            afterwards = ending(await connection.request(completion("calm")))

    assert endings == [Ending(words(f"{number} " * 30)) for number in range(CLIENTS)]
    assert refusals > CLIENTS, "it was a storm"
    assert len(engine.closed) == CLIENTS + 1, "the engine did each answer once"
    assert afterwards == Ending(words("calm"))
