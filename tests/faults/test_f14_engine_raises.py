"""F14: an engine raises at some token. That request ends with one error, everything else goes on."""

from __future__ import annotations

import asyncio

import pytest

from fastchat_serve import GenerateRequest, Handle, Sink
from tests.end_to_end.raw import connected, expect_error
from tests.end_to_end.waiting import queue_lengths, until
from tests.faults.conftest import FAULTY
from tests.faults.engine import FaultEngine, PushingFaultEngine, plugins_with, words
from tests.faults.ledger import Ending, completion, ending

pytestmark = pytest.mark.anyio

TEXT = " ".join(map(str, range(10)))
LAST = 9


async def test_f14_it_ends_that_request_once_and_the_next_is_served(serving, kind):
    async with serving(FAULTY, plugins_with(kind=kind)) as server, connected(server) as connection:
        for at in (0, 1, 7, LAST):
            for stream in (True, False):
                reply = await connection.request(completion(f"raise@{at} {TEXT}", stream=stream))
                good = await connection.request(completion(TEXT, stream=stream))
                assert queue_lengths(server) == (0, 0)
                if at == 0 or not stream:
                    expect_error(reply, 500, "engine_failed")
                sent = "".join(f"{number} " for number in range(at)) if stream else ""
                assert ending(reply) == Ending(sent, "engine_failed")
                assert b"secret" not in reply.body
                assert ending(good) == Ending(words(TEXT))


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (FaultEngine, "raise"),
        (FaultEngine, "cancel"),
        (FaultEngine, "end"),
        (PushingFaultEngine, "raise"),
        (PushingFaultEngine, "end"),
    ],
)
async def test_f14_its_neighbours_in_the_same_engine_lose_nothing(serving, kind, fault):
    toml = FAULTY.replace("concurrency = 2", "concurrency = 64")
    async with serving(toml, plugins_with(kind=kind)) as server:

        async def client(number: int) -> tuple[str, Ending]:
            prompt = f"{fault}@{number % 10} {TEXT}" if number % 3 == 0 else TEXT
            async with connected(server) as connection:
                return prompt, ending(await connection.request(completion(prompt)))

        endings = await asyncio.gather(*map(client, range(48)))
        await until(lambda: queue_lengths(server) == (0, 0))

    for prompt, end in endings:
        if prompt == TEXT:
            assert end == Ending(words(TEXT))
        else:
            assert end.code in ("engine_failed", "engine_protocol_error")
            assert words(TEXT).startswith(end.text)


class _HastyEngine(PushingFaultEngine):
    """It ends the first choice of a request before `start` has returned, and the others never."""

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        handle = _Running(sink)
        if not request.id.rpartition("-")[2].isdigit():
            sink.end(RuntimeError("at once"))
        return handle


class _Running:
    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def abort(self) -> None:
        asyncio.get_running_loop().call_soon(self._sink.end, None)


async def test_f14_a_choice_that_fails_at_once_leaves_no_other_running(serving):
    async with serving(FAULTY, plugins_with(kind=_HastyEngine)) as server, connected(server) as connection:
        for stream in (True, False):
            expect_error(await connection.request(completion(TEXT, stream=stream, n=3)), 500, "engine_failed")
            await until(lambda: queue_lengths(server) == (0, 0))
