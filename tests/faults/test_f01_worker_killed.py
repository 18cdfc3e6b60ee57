"""F1 and F3: a worker's process is killed, or frozen, in the middle of its streams. Each ends once; others go on."""

from __future__ import annotations

import os
import signal

import anyio
import pytest

from fastchat_serve.server import HttpServer
from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.process import ProcessWorker
from tests.end_to_end.raw import Connection, Reply, connected
from tests.end_to_end.waiting import until
from tests.faults.ledger import Ending, completion, ending

pytestmark = pytest.mark.anyio

TWO = """
[controller]
[api]
[[worker]]
backend = "echo"
names = ["mortal"]
placement = "process"
options = { loop = true, delay_ms = 1 }
[[worker]]
backend = "echo"
names = ["neighbour"]
options = { delay_ms = 1 }
"""
TEXT = " ".join(map(str, range(300)))
STREAMS = 8


def mortal(server: HttpServer) -> ProcessWorker:
    worker = server.application.workers[0]
    assert isinstance(worker, ProcessWorker)
    return worker


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_f1_f3_its_streams_end_with_one_error_and_its_neighbours_lose_nothing(serving, number):
    replies: list[Reply] = []

    async def ask(connection: Connection, model: str) -> None:
        replies.append(await connection.request(completion(TEXT, model=model, max_tokens=100_000)))

    async with serving(TWO) as server, anyio.create_task_group() as asking:
        worker = mortal(server)
        for _ in range(STREAMS):
            asking.start_soon(_in_a_connection, server, ask, "mortal")
        await until(lambda: worker.load().running == STREAMS)
        asking.start_soon(_in_a_connection, server, ask, "neighbour")
        pid = worker.pid
        assert pid is not None
        os.kill(pid, number)
        try:
            await until(lambda: len(replies) == STREAMS + 1, within_s=10)
        finally:
            if number is signal.SIGSTOP:
                os.kill(pid, signal.SIGCONT)
        endings = [ending(reply) for reply in replies]
        assert [end.code for end in endings].count("worker_lost") == STREAMS
        assert Ending(TEXT) in endings
        await until(lambda: worker.state is WorkerState.READY, within_s=10)
        async with connected(server) as connection:
            again = ending(await connection.request(completion("a b", model="mortal", max_tokens=2)))
        assert again.code == ""
        assert worker.queue_length == 0


async def _in_a_connection(server, ask, model):
    async with connected(server) as connection:
        await ask(connection, model)
