"""F18: an engine sends what is no chunk, counts wrong, or does not know when it has ended. Whatever it is, the client's
stream stays well-formed with exactly one end, and the breach is counted."""

from __future__ import annotations

import json

import pytest

from fastchat_serve import Chunk, Usage
from fastchat_serve.worker.base import WorkerState
from tests.end_to_end.raw import connected, get
from tests.end_to_end.waiting import queue_lengths
from tests.faults.conftest import FAULTY
from tests.faults.engine import JUNK, FaultEngine, PushingFaultEngine, plugins_with, words
from tests.faults.ledger import Ending, completion, ending

pytestmark = pytest.mark.anyio


async def protocol_errors(connection) -> int:
    """As ``/metrics`` tells them."""
    text = (await connection.request(get("/metrics"))).body.decode()
    (line,) = (line for line in text.splitlines() if line.startswith("fastchat_engine_protocol_errors_total{"))
    return int(float(line.rpartition(" ")[2]))


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize("logprobs", [{}, {"logprobs": 1}], ids=["text only", "logprobs"])
async def test_f18_a_chunk_that_cannot_be_used_is_one_error_and_counted(serving, kind, logprobs):
    async with serving(FAULTY, plugins_with(kind=kind)) as server, connected(server) as connection:
        for number, name in enumerate(JUNK):
            for stream in (True, False):
                before = await protocol_errors(connection)
                reply = await connection.request(completion(f"junk-{number}@1 a b c", stream=stream, **logprobs))
                good = await connection.request(completion("a b c"))
                assert await protocol_errors(connection) == before + 1, name
                assert ending(reply) == Ending("a " if stream else "", "engine_protocol_error"), name
                assert ending(good) == Ending(words("a b c")), name
                for line in reply.body.decode().splitlines():
                    json.loads(line.removeprefix("data: ") or "0", parse_constant=no_constant)
        (worker,) = server.application.workers
        assert (worker.state, queue_lengths(server)) == (WorkerState.READY, (0, 0))


async def test_f18_no_end_at_all_is_an_error(serving, kind):
    async with serving(FAULTY, plugins_with(kind=kind)) as server, connected(server) as connection:
        for at in (0, 2):
            for stream in (True, False):
                before = await protocol_errors(connection)
                reply = await connection.request(completion(f"end@{at} a b c", stream=stream))
                assert ending(reply) == Ending("a b "[: 2 * at] if stream else "", "engine_protocol_error")
                assert await protocol_errors(connection) == before + 1


@pytest.mark.parametrize("fault", ["twice", "on"])
async def test_f18_what_comes_after_the_end_is_counted_and_the_answer_stays_whole(serving, fault):
    async with serving(FAULTY, plugins_with(kind=PushingFaultEngine)) as server, connected(server) as connection:
        for stream in (True, False):
            before = await protocol_errors(connection)
            reply = await connection.request(completion(f"{fault}@0 a b c", stream=stream))
            good = await connection.request(completion("a b c"))
            assert ending(reply) == ending(good) == Ending(words("a b c"))
            assert await protocol_errors(connection) > before


X = Chunk(text="x", token_ids=(1,))
END = Chunk(finish_reason="stop", usage=Usage(1, 2))
ODD = {
    "good": ([X, X, END], "xx", 0),
    "empty deltas": ([Chunk(), Chunk(), X, Chunk(), X, Chunk(), END], "xx", 0),
    "no tokens": ([Chunk(finish_reason="stop", usage=Usage(1, 0))], "", 0),
    "no ids, so nothing to compare": ([Chunk(text="xx"), END], "xx", 0),
    "counts too many": ([X, END], "x", 1),
    "counts too few": ([X, X, X, END], "xxx", 1),
    "no usage": ([X, X, Chunk(finish_reason="stop")], "xx", 1),
    "two ends": ([X, X, END, END], "xx", 1),
    "text after the end": ([X, X, END, X], "xx", 1),
}
"""What an engine sends, the answer that its client sees, and how many breaches that is."""


class Odd(FaultEngine):
    """Sends what `ODD` says, by name."""

    async def generate_stream(self, request):
        for chunk in ODD[request.prompt.text][0]:
            yield chunk


async def test_f18_what_does_not_spoil_the_answer_is_counted_only(serving):
    async with serving(FAULTY, plugins_with(kind=Odd)) as server, connected(server) as connection:
        for name, (_, text, breaches) in ODD.items():
            for stream in (True, False):
                before = await protocol_errors(connection)
                reply = await connection.request(completion(name, stream=stream))
                assert ending(reply) == Ending(text), name
                assert await protocol_errors(connection) == before + breaches, name
