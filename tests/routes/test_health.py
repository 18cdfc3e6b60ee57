"""What operators and their tools ask: health, readiness, workers."""

from __future__ import annotations

import anyio
import pytest

from tests.end_to_end.raw import connected, get, post

pytestmark = pytest.mark.anyio


async def test_a_server_that_serves_is_healthy_and_ready(server):
    async with connected(server) as connection:
        assert (await connection.request(get("/health"))).json() == {"status": "ok"}
        ready = await connection.request(get("/ready"))

    assert ready.status == 200
    assert ready.json() == {"ready": True, "models": {"echo": ["ready"], "org/echo": ["ready"]}}


async def test_a_draining_server_is_alive_but_not_ready_and_takes_nothing(serving):
    """G7."""
    toml = '[controller]\n[api]\n[[worker]]\nbackend = "echo"\noptions = {loop = true, delay_ms = 5}'
    async with serving(toml) as server, connected(server) as busy, connected(server) as connection:
        busy.send(post("/v1/completions", {"model": "echo", "prompt": "x", "stream": True, "max_tokens": 10**4}))
        await busy.head()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.application.drain, 5)
            await anyio.lowlevel.checkpoint()
            ready = await connection.request(get("/ready"))
            refused = await connection.request(post("/v1/completions", {"model": "echo", "prompt": "x"}))
            alive = await connection.request(get("/health"))
            busy.reset()

    assert (ready.status, ready.json()["models"]) == (503, {"echo": ["draining"]})
    assert (refused.status, refused.json()["error"]["code"]) == (503, "no_worker")
    assert int(refused.headers["retry-after"]) >= 1
    assert alive.status == 200


@pytest.mark.usefixtures("no_restarts")
async def test_a_failed_worker_shows_and_the_rest_serves(serving):
    """F15: not ready any more, with the reason where the operator looks."""
    toml = """
[controller]
[api]
[[worker]]
backend = "echo"
names = ["deaf"]
options = {stall_at = 0, deaf = true}
timeouts = {first_token_s = 0.1}
[[worker]]
backend = "echo"
"""
    async with serving(toml) as server, connected(server) as connection:
        server.application.workers[0].fail("tried out")
        ready = await connection.request(get("/ready"))
        listed = (await connection.request(get("/cluster/workers"))).json()["workers"]
        refused = await connection.request(post("/v1/completions", {"model": "deaf", "prompt": "x"}))
        served = await connection.request(post("/v1/completions", {"model": "echo", "prompt": "x"}))

    assert (ready.status, ready.json()["models"]) == (503, {"deaf": ["failed"], "echo": ["ready"]})
    assert [(worker["models"], worker["state"], worker["reason"]) for worker in listed] == [
        (["deaf"], "failed", "tried out"),
        (["echo"], "ready", ""),
    ]
    assert (refused.status, served.status) == (503, 200)


async def test_workers_tell_their_slots_and_their_engine(server):
    async with connected(server) as connection:
        (worker,) = (await connection.request(get("/cluster/workers"))).json()["workers"]

    assert worker["models"] == ["echo", "org/echo"]
    assert (worker["running"], worker["waiting"], worker["slots"], worker["queue_limit"]) == (0, 0, 64, 64)
    assert worker["context_length"] == 131_072
    assert {"chat", "embed", "logprobs"} <= set(worker["capabilities"])
