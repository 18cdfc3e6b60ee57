"""F15: an engine hangs at some token. The time limit ends the request; if the engine does not even let go of it when
told, its worker fails, and is opened anew if the engine can be closed."""

from __future__ import annotations

import pytest

from fastchat_serve.worker import local
from fastchat_serve.worker.base import WorkerState
from tests.end_to_end.raw import connected, expect_error, get, post
from tests.end_to_end.waiting import queue_lengths, until
from tests.faults.conftest import FAULTY
from tests.faults.engine import FaultEngine, plugins_with, words
from tests.faults.ledger import Ending, completion, ending

pytestmark = pytest.mark.anyio

LIMITED = FAULTY + "timeouts = {first_token_s = 0.2, between_tokens_s = 0.2}\n"
TWO = LIMITED + '[[worker]]\nbackend = "echo"\nnames = ["echo"]\n'


@pytest.fixture(autouse=True)
def impatience(monkeypatch):
    monkeypatch.setattr(local, "CHECK_INTERVAL_S", 0.01)
    monkeypatch.setattr(local, "CLOSE_S", 0.2)
    # The default of an argument is bound when the function is defined.
    monkeypatch.setitem(local.LocalWorker.__init__.__kwdefaults__, "abort_grace_s", 0.2)


async def test_f15_the_limit_ends_it_the_engine_is_told_and_the_slot_is_free(serving, kind):
    engine = kind()
    async with serving(LIMITED, plugins_with(engine)) as server, connected(server) as connection:
        (worker,) = server.application.workers
        for at, code in ((0, "first_token_timeout"), (1, "between_tokens_timeout")):
            for stream in (True, False):
                reply = await connection.request(completion(f"hang@{at} a b c", stream=stream))
                await until(lambda: queue_lengths(server) == (0, 0))
                assert ending(reply) == Ending("a " if at and stream else "", code)
        good = await connection.request(completion("a b c"))
        assert worker.state is WorkerState.READY

    assert ending(good) == Ending(words("a b c"))
    assert len(engine.closed) == 5


async def test_f15_if_the_abort_hangs_too_the_worker_is_opened_anew_with_another_engine(serving, kind):
    """Closing is all it takes here: this engine lets go then."""
    engine = kind()
    async with serving(TWO, plugins_with(engine, kind=kind)) as server, connected(server) as connection:
        reply = await connection.request(completion("hang-deaf@1 a b c"))
        other = await connection.request(post("/v1/completions", {"model": "echo", "prompt": "x"}))
        worker, _ = server.application.workers
        await until(lambda: worker.restarts == 1 and worker.state is WorkerState.READY, within_s=5)
        good = await connection.request(completion("a b c"))
        assert queue_lengths(server) == (0, 0)

    assert ending(reply) == Ending("a ", "between_tokens_timeout")
    assert other.status == 200
    assert ending(good) == Ending(words("a b c"))


class NeverCloses(FaultEngine):
    async def __aexit__(self, *exc_info):
        await self.release.wait()


@pytest.mark.parametrize("fault", ["die", "hang-deaf"])
async def test_f15_an_engine_that_does_not_close_either_stays_out_and_the_others_serve(serving, caplog, fault):
    """No other is opened in its place: beside it, there might be no memory on the device."""
    engine = NeverCloses()
    async with serving(TWO, plugins_with(engine)) as server, connected(server) as connection:
        stuck = await connection.request(completion(f"{fault}@1 a b c"))
        worker, _ = server.application.workers
        await until(lambda: worker.state is WorkerState.FAILED, within_s=5)
        if fault == "die":
            await until(lambda: "did not close" in caplog.text, within_s=5)
        refused = await connection.request(completion("a b c"))
        other = await connection.request(post("/v1/completions", {"model": "echo", "prompt": "x"}))
        workers = (await connection.request(get("/cluster/workers"))).json()["workers"]
        assert worker.restarts == 0
        engine.release.set()

    assert ending(stuck).code in ("between_tokens_timeout", "engine_failed")
    expect_error(refused, 503, "no_worker")
    assert int(refused.headers["retry-after"]) == local.NO_HOPE_S
    assert other.status == 200
    assert [(worker["state"], bool(worker["reason"])) for worker in workers] == [("failed", True), ("ready", False)]
