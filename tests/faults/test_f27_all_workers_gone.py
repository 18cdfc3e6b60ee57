"""F27: every worker of a model is gone. Requests are refused at once and told when to come back, and served again as
soon as a worker is."""

from __future__ import annotations

import anyio
import pytest

from fastchat_serve.worker import local
from fastchat_serve.worker.base import WorkerState
from tests.end_to_end.raw import connected, expect_error, get
from tests.end_to_end.waiting import until
from tests.faults.conftest import FAULTY
from tests.faults.engine import FaultEngine, plugins_with, words
from tests.faults.ledger import Ending, completion, ending

pytestmark = pytest.mark.anyio

TWO = FAULTY + FAULTY.partition("[api]")[2]


class LoadsWhenLet(FaultEngine):
    """Attributes: `go`, lets it be opened."""

    def __init__(self) -> None:
        super().__init__()
        self.go = anyio.Event()

    async def __aenter__(self):
        await self.go.wait()
        return self


async def test_f27_refused_at_once_with_an_honest_time_and_served_again_when_one_is_back(serving, monkeypatch):
    monkeypatch.setattr(local, "CHECK_INTERVAL_S", 0.01)
    later = [LoadsWhenLet(), LoadsWhenLet()]
    plugins = plugins_with(FaultEngine(), FaultEngine(), *later)
    async with serving(TWO, plugins) as server, connected(server) as connection:
        workers = server.application.workers
        for count in (1, 2):
            broken = await connection.request(completion("die@1 a b c"))
            assert ending(broken).code == "engine_failed"
            await until(lambda count=count: [w.state for w in workers].count(WorkerState.LOADING) == count, within_s=5)
        for worker in workers:
            worker._loading._took_s = 40.0  # as a model of some size took when it was loaded first

        refused = [await connection.request(completion("a b c", stream=stream)) for stream in (True, False)]
        ready = await connection.request(get("/ready"))

        later[1].go.set()
        await until(lambda: any(worker.state is WorkerState.READY for worker in workers), within_s=5)
        served = await connection.request(completion("a b c"))
        ready_again = await connection.request(get("/ready"))
        later[0].go.set()

    for reply in refused:
        expect_error(reply, 503, "no_worker")
        assert 30 <= int(reply.headers["retry-after"]) <= 40
    assert ready.status == 503
    assert ending(served) == Ending(words("a b c"))
    assert ready_again.status == 200


@pytest.mark.usefixtures("no_restarts")
async def test_f27_what_nobody_brings_back_is_refused_for_long(serving, monkeypatch):
    monkeypatch.setattr(local, "CHECK_INTERVAL_S", 0.01)
    async with serving(FAULTY, plugins_with()) as server, connected(server) as connection:
        await connection.request(completion("die@0 a"))
        await until(lambda: server.application.workers[0].state is WorkerState.FAILED, within_s=5)
        refused = await connection.request(completion("a b c"))
        alive = await connection.request(get("/health"))
        models = await connection.request(get("/v1/models"))

    expect_error(refused, 503, "no_worker")
    assert int(refused.headers["retry-after"]) == local.NO_HOPE_S
    assert (alive.status, models.status) == (200, 200)
