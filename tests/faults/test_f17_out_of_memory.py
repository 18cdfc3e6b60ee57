"""F17: there is no memory for a request. It is told so and may come back; the engine goes on, and nothing restarts."""

from __future__ import annotations

from itertools import product

import pytest

from fastchat_serve.worker import local, restarts
from fastchat_serve.worker.base import WorkerState
from tests.end_to_end.process import install_plugin, started
from tests.end_to_end.raw import connected, expect_error, get, post
from tests.end_to_end.waiting import until
from tests.faults.conftest import FAULTY
from tests.faults.engine import FaultEngine, plugins_with, words
from tests.faults.ledger import Ending, completion, ending

pytestmark = pytest.mark.anyio


async def test_f17_the_request_is_told_and_the_worker_goes_on(serving, kind):
    async with serving(FAULTY, plugins_with(kind=kind)) as server, connected(server) as connection:
        (worker,) = server.application.workers
        for fault, at, stream in product(("memory", "device-memory"), (0, 2), (True, False)):
            reply = await connection.request(completion(f"{fault}@{at} a b c", stream=stream))
            good = await connection.request(completion("a b c"))
            assert (worker.state, worker.restarts, worker.queue_length) == (WorkerState.READY, 0, 0)
            assert ending(reply).code == "out_of_memory"
            assert b"/dev" not in reply.body
            if at == 0 or not stream:
                expect_error(reply, 503)
                assert int(reply.headers["retry-after"]) >= 1
            assert ending(good) == Ending(words("a b c"))


async def test_f17_an_engine_that_breaks_again_and_again_is_not_opened_anew_for_ever(
    serving, kind, monkeypatch, caplog
):
    """Erlang's restart intensity: three within a minute, then it is left so and said."""
    monkeypatch.setattr(local, "CHECK_INTERVAL_S", 0.01)
    async with serving(FAULTY, plugins_with(kind=kind)) as server, connected(server) as connection:
        (worker,) = server.application.workers
        for restart in range(1, restarts.MOST + 1):
            broken = await connection.request(completion("die@1 a b c"))
            assert ending(broken) == Ending("a ", "engine_failed")
            await until(
                lambda restart=restart: worker.restarts == restart and worker.state is WorkerState.READY, within_s=5
            )
            assert ending(await connection.request(completion("a b c"))) == Ending(words("a b c"))
            assert worker.reason == ""
        await connection.request(completion("die@1 a b c"))
        await until(lambda: "too often" in caplog.text, within_s=5)
        refused = await connection.request(completion("a b c"))
        metrics = (await connection.request(get("/metrics"))).body.decode()

    expect_error(refused, 503, "no_worker")
    assert int(refused.headers["retry-after"]) == local.NO_HOPE_S
    assert f'fastchat_worker_restarts_total{{model="faulty",worker="{worker.id}"}} {restarts.MOST}.0' in metrics


async def test_f17_an_engine_that_cannot_be_opened_anew_is_tried_no_more_often(serving, monkeypatch, caplog):
    monkeypatch.setattr(local, "CHECK_INTERVAL_S", 0.01)
    opened = []

    class OpensOnce(FaultEngine):
        async def __aenter__(self):
            opened.append(self)
            if len(opened) > 1:
                raise OSError("the device is still gone")
            return self

    async with serving(FAULTY, plugins_with(kind=OpensOnce)) as server, connected(server) as connection:
        await connection.request(completion("die@0 a"))
        await until(lambda: "too often" in caplog.text, within_s=5)
        expect_error(await connection.request(completion("a b c")), 503, "no_worker")

    assert len(opened) == 1 + restarts.MOST


GREEDY = """
import resource
from fastchat_serve import CONTRACT, hookimpl
from fastchat_serve.engines.echo import EchoEngine

class Greedy(EchoEngine):
    def start(self, request, sink):
        if request.prompt.text == "greedy":
            resource.setrlimit(resource.RLIMIT_AS, (self.limit(), resource.RLIM_INFINITY))
            try:
                bytearray(2**32)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return super().start(request, sink)

    def limit(self):
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize() + 2**26

@hookimpl
def register_engines(register):
    register("greedy", lambda setup: Greedy(), contract=CONTRACT)
"""


async def test_f17_a_real_limit_of_the_system_is_no_end_of_the_process(tmp_path):
    install_plugin(tmp_path, "greedy", GREEDY)
    config = tmp_path / "config.toml"
    config.write_text('[server]\nport = 0\n[controller]\n[api]\n[[worker]]\nbackend = "greedy"\n')
    async with started("--config", config, plugins=tmp_path) as server, connected(await server.url()) as connection:
        refused = await connection.request(post("/v1/completions", {"model": "greedy", "prompt": "greedy"}))
        served = await connection.request(post("/v1/completions", {"model": "greedy", "prompt": "modest"}))
        ready = await connection.request(get("/ready"))

    expect_error(refused, 503, "out_of_memory")
    assert served.json()["choices"][0]["text"] == "modest"
    assert ready.status == 200
