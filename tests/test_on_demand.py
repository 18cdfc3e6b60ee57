"""Models on demand, as clients meet them: in one process, and in front of workers elsewhere."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest
from openai import AsyncOpenAI, RateLimitError

from fastchat_serve.server import HttpServer
from fastchat_serve.worker.base import WorkerState
from tests.cluster import api, controller, worker
from tests.end_to_end.waiting import until
from tests.gated import Gate

pytestmark = pytest.mark.anyio

SOON_S = 10.0
"""Generous: the machine may be busy."""
LAZY = """
[controller]
[api]
[[worker]]
backend = "gated"
names = ["lazy"]
load = "first_request"
concurrency = 2
queue = 1
"""


@pytest.fixture
def gate() -> Gate:
    return Gate()


def client_of(server: HttpServer) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=20)


async def complete(client: AsyncOpenAI, **more: Any) -> str:
    return (await client.completions.create(model="lazy", prompt="to be or not", **more)).choices[0].text


async def test_requests_of_all_kinds_wait_for_their_model(serving, gate):
    async with serving(LAZY, gate.plugins) as server, client_of(server) as client:
        texts: list[str] = []

        async def ask() -> None:
            texts.append(await complete(client))

        async def stream() -> None:
            asked = [{"role": "user", "content": "to be or not"}]
            events = await client.chat.completions.create(model="lazy", messages=asked, stream=True)  # type: ignore[call-overload]
            texts.append("".join([event.choices[0].delta.content or "" async for event in events]))

        async def embed() -> None:
            found = await client.embeddings.create(model="lazy", input="to be or not")
            texts.append("to be or not" if found.data[0].embedding else "")

        async with anyio.create_task_group() as tasks:
            for each in (ask, stream, embed):
                tasks.start_soon(each)
            await until(lambda: server.application.workers[0].load().waiting == 3, SOON_S)
            gate.open()
        assert texts == ["to be or not"] * 3
        assert gate.loads == 1


async def test_an_unloaded_model_is_listed_and_counts_as_ready(serving, gate):
    async with serving(LAZY, gate.plugins) as server, httpx.AsyncClient(base_url=server.url) as http:
        assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["lazy"]
        ready = await http.get("/ready")
        assert (ready.status_code, ready.json()["models"]) == (200, {"lazy": ["unloaded"]})
        (card,) = (await http.get("/cluster/workers")).json()["workers"]
        assert card["state"] == "unloaded"


async def test_the_list_of_workers_tells_how_far_a_load_is(serving, gate):
    async with (
        serving(LAZY, gate.plugins) as server,
        client_of(server) as client,
        httpx.AsyncClient(base_url=server.url) as http,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(complete, client)
        await until(lambda: gate.loads == 1, SOON_S)
        gate.engines[0].progress("reading weights", 0.4)
        (card,) = (await http.get("/cluster/workers")).json()["workers"]
        assert (card["state"], card["stage"], card["fraction"]) == ("loading", "reading weights", 0.4)
        assert card["waiting"] == 1
        assert (await http.get("/ready")).status_code == 200
        gate.open()


async def test_more_than_can_wait_are_refused_with_an_honest_time(serving, gate):
    async with serving(LAZY, gate.plugins) as server, client_of(server) as client, anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(complete, client)
        await until(lambda: server.application.workers[0].load().waiting == 3, SOON_S)
        with pytest.raises(RateLimitError) as refused:
            await complete(client)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        gate.open()


async def test_who_has_waited_for_too_long_is_told_when_to_come_back(serving, gate):
    impatient = LAZY + "[worker.timeouts]\nqueue_s = 0.05\n"
    async with serving(impatient, gate.plugins) as server, httpx.AsyncClient(base_url=server.url) as http:
        for path in ("/v1/completions", "/v1/embeddings"):
            reply = await http.post(path, json={"model": "lazy", "prompt": "x", "input": "x"})
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "loading")
            assert int(reply.headers["retry-after"]) >= 1
        gate.open()


async def test_the_time_to_the_first_token_counts_from_the_request_and_not_from_the_load(serving, gate):
    async with (
        serving(LAZY, gate.plugins) as server,
        client_of(server) as client,
        httpx.AsyncClient(base_url=server.url) as http,
    ):

        async def read() -> None:
            async for _ in await client.completions.create(model="lazy", prompt="x", stream=True):
                pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await until(lambda: gate.loads == 1, SOON_S)
            await anyio.sleep(0.2)  # what it waits at least
            gate.open()
        metrics = (await http.get("/metrics")).text
        (line,) = (
            line for line in metrics.splitlines() if line.startswith("gen_ai_server_time_to_first_token_seconds_sum")
        )
        assert float(line.split()[-1]) >= 0.2


async def test_whoever_leaves_does_not_wait_any_more(serving, gate):
    async with serving(LAZY, gate.plugins) as server:
        (lazy,) = server.application.workers
        async with client_of(server) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(complete, client)
            await until(lambda: lazy.load().waiting == 1, SOON_S)
            tasks.cancel_scope.cancel()
        await until(lambda: lazy.load().waiting == 0, SOON_S)
        gate.open()


async def test_a_request_that_is_wrong_is_told_so_once_the_model_is_there(serving, gate):
    gate.open()
    async with serving(LAZY, gate.plugins) as server, httpx.AsyncClient(base_url=server.url) as http:
        reply = await http.post("/v1/completions", json={"model": "lazy", "prompt": "x", "logprobs": 1000})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "logprobs")


async def test_a_server_that_is_told_to_stop_tells_those_that_wait(serving, gate):
    async with serving(LAZY, gate.plugins) as server, httpx.AsyncClient(base_url=server.url) as http:
        replies: list[httpx.Response] = []

        async def ask() -> None:
            replies.append(await http.post("/v1/completions", json={"model": "lazy", "prompt": "x"}))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await until(lambda: server.application.workers[0].load().waiting == 1, SOON_S)
            await server.drain()
        assert replies[0].status_code == 503


async def test_a_model_elsewhere_is_loaded_for_the_requests_of_an_api(serving, gate):
    lazy = worker("{url}").replace('"echo"', '"lazy"').replace('backend = "lazy"', 'backend = "gated"')
    lazy = lazy.replace("[worker.options]", 'load = "first_request"\nidle_unload_s = 0.3\n[worker.options]')
    async with (
        serving(controller()) as there,
        serving(api(there.url)) as front,
        serving(lazy.replace("{url}", there.url), gate.plugins),
        client_of(front) as client,
    ):

        def seen() -> list[WorkerState]:
            return [each.state for each in front.application.registry.serving("lazy")]

        await until(lambda: seen() == [WorkerState.UNLOADED], SOON_S)
        assert front.application.registry.ready
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(complete, client)
            await until(lambda: gate.loads == 1, SOON_S)
            gate.engines[0].progress("reading weights", 0.4)
            (remote,) = front.application.registry.serving("lazy")
            await until(lambda: remote.progress.fraction == 0.4, SOON_S)
            gate.open()
        assert seen() == [WorkerState.READY]
        await until(lambda: seen() == [WorkerState.UNLOADED], SOON_S)
        assert await complete(client) == "to be or not"
        assert gate.loads == 2


async def test_a_model_elsewhere_that_cannot_be_loaded_is_told_as_such(serving, gate):
    gate.failure = "no such weights"
    gate.open()
    lazy = worker("{url}").replace('"echo"', '"lazy"').replace('backend = "lazy"', 'backend = "gated"')
    lazy = lazy.replace("[worker.options]", 'load = "first_request"\n[worker.options]')
    async with (
        serving(controller()) as there,
        serving(api(there.url)) as front,
        serving(lazy.replace("{url}", there.url), gate.plugins),
        httpx.AsyncClient(base_url=front.url) as http,
    ):
        await until(lambda: len(front.application.registry.serving("lazy")) == 1, SOON_S)
        reply = await http.post("/v1/completions", json={"model": "lazy", "prompt": "x"})
        assert (reply.status_code, "no such weights" in reply.text) == (503, False)
        (remote,) = front.application.registry.serving("lazy")
        await until(lambda: "no such weights" in remote.reason, SOON_S)
