"""Roles in servers of their own: who is listed, who is called, and what is said when that cannot be."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import anyio
import httpx
import pytest

from fastchat_serve import cluster
from fastchat_serve.server import HttpServer
from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.dial import Backoff
from tests import ports
from tests.cluster import TOKEN, api, controller, worker
from tests.conftest import Serving
from tests.end_to_end.waiting import until

pytestmark = pytest.mark.anyio

JOIN_S = 10.0
"""Generous: dialling again takes about a second, and the machine may be busy."""


def states(server: HttpServer, model: str = "echo") -> list[str]:
    return sorted(worker.state.value for worker in server.application.registry.serving(model))


async def serves(server: HttpServer, count: int = 1) -> None:
    """Wait until so many workers are ready there."""
    await until(lambda: states(server).count("ready") == count, JOIN_S)


async def ask(server: HttpServer, prompt: str = "to be or not", **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
        return await client.post("/v1/completions", json={"model": "echo", "prompt": prompt} | more)


async def answer(server: HttpServer, prompt: str = "to be or not") -> str:
    reply = await ask(server, prompt)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["text"])


@asynccontextmanager
async def split(serving: Serving, **settings: Any) -> AsyncIterator[tuple[HttpServer, HttpServer, HttpServer]]:
    """A controller, an API and a worker."""
    async with (
        serving(controller()) as there,
        serving(api(there.url)) as front,
        serving(worker(there.url, **settings)) as back,
    ):
        await serves(front)
        yield there, front, back


async def test_a_request_reaches_a_worker_of_another_process(serving):
    async with split(serving) as (_, front, _):
        assert await answer(front) == "to be or not"


async def test_streams_embeddings_and_the_list_of_models_are_as_in_one_process(serving):
    async with split(serving, options="delay_ms = 1") as (_, front, _), httpx.AsyncClient(base_url=front.url) as client:
        models = (await client.get("/v1/models")).json()
        assert [model["id"] for model in models["data"]] == ["echo"]
        embedded = await client.post("/v1/embeddings", json={"model": "echo", "input": ["a", "b"]})
        assert len(embedded.json()["data"]) == 2
        text = ""
        async with client.stream(
            "POST", "/v1/completions", json={"model": "echo", "prompt": "x y z", "stream": True}
        ) as reply:
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    text += "".join(choice["text"] for choice in json.loads(line[6:])["choices"])
        assert text == "x y z"


@pytest.mark.parametrize("order", ["worker last", "controller last", "api last"])
async def test_the_order_in_which_roles_start_does_not_matter(serving, free_port, order):
    url = f"http://127.0.0.1:{free_port}"
    roles = {
        "controller": lambda: serving(controller(), port=free_port),
        "api": lambda: serving(api(url)),
        "worker": lambda: serving(worker(url)),
    }
    last = order.removesuffix(" last")
    first, second = sorted(roles.keys() - {last})
    async with roles[first]() as one, roles[second]() as two, roles[last]() as three:
        servers = {first: one, second: two, last: three}
        await serves(servers["api"])
        assert await answer(servers["api"]) == "to be or not"


@pytest.fixture
def free_port() -> int:
    """For servers that come and go at the same address."""
    return ports.free_port()


async def test_g10_a_controller_that_is_gone_costs_no_request_and_one_that_is_back_knows_all(serving, free_port):
    url = f"http://127.0.0.1:{free_port}"
    async with serving(api(url)) as front, serving(worker(url)), serving(worker(url)):
        async with serving(controller(), port=free_port):
            await serves(front, 2)
        assert await answer(front) == "to be or not"
        async with serving(controller(), port=free_port) as back:
            await serves(back, 2)
            assert await answer(front) == "to be or not"
            assert states(front) == ["ready", "ready"]


async def test_a_controller_that_is_gone_is_not_dialled_in_a_storm(serving, free_port):
    """By a worker that it has listed before."""
    arrivals = 0

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrivals
        arrivals += 1
        writer.close()

    url = f"http://127.0.0.1:{free_port}"
    async with serving(worker(url)):
        async with serving(controller(), port=free_port) as there:
            await serves(there)
        async with await asyncio.start_server(close, "127.0.0.1", free_port):
            await asyncio.sleep(3.0)
    assert 2 <= arrivals <= 12


async def test_a_worker_whose_links_end_as_soon_as_they_are_made_is_not_dialled_in_a_storm(serving):
    async with split(serving) as (_, front, back):
        before = back.application.links.node.hello("").incarnation
        with anyio.move_on_after(3.0):
            while True:
                await serves(front)
                for link in back.application.links.node.links:
                    link.abort("the test cuts it")
                await until(lambda: states(front) != ["ready"], JOIN_S)
        made = back.application.links.node.hello("").incarnation - before
        assert 6 <= made <= 27, "to the controller, for its proof, and by the API: each backs off"
        await serves(front)


async def test_with_two_controllers_either_is_enough(serving):
    async with (
        serving(controller()) as one,
        serving(controller()) as other,
        serving(worker(one.url, other.url)),
        serving(api(one.url, other.url)) as front,
    ):
        await serves(front)
        await serves(other)
        one.stop()
        async with serving(worker(one.url, other.url)):
            await serves(front, 2)
            assert await answer(front) == "to be or not"


async def test_a_name_stands_for_all_controllers_that_it_leads_to_now(serving, free_port, monkeypatch):
    """As that of a headless service does in Kubernetes, whose pods come and go."""
    leads_to = ["127.0.0.1"]

    async def resolve(url: str) -> tuple[str, ...]:
        return tuple(leads_to)

    monkeypatch.setattr("fastchat_serve.worker.names.resolve", resolve)
    monkeypatch.setattr("fastchat_serve.worker.names.RESOLVE_S", 0.05)
    name = f"http://controllers.example:{free_port}"

    def at(host: str) -> str:
        return controller(more=f'[server]\nhost = "{host}"\n')

    async with serving(api(name)) as front, serving(worker(name)):
        async with serving(at("127.0.0.1"), port=free_port) as one:
            await serves(front)
            leads_to.append("127.0.0.2")
            async with serving(at("127.0.0.2"), port=free_port) as other:
                await serves(other)
                leads_to.remove("127.0.0.1")
                one.stop()
                async with serving(worker(name)):
                    await serves(other, 2)
                    await serves(front, 2)
        assert await answer(front) == "to be or not"


async def test_a_worker_that_dials_out_keeps_its_links_while_its_controller_starts_anew(serving, free_port):
    url = f"http://127.0.0.1:{free_port}"
    async with (
        serving(api(url)) as front,
        serving(worker(url, more='reach = "out"', options="delay_ms = 5\nloop = true")),
    ):
        async with serving(controller(), port=free_port):
            await serves(front)
        asked = {"model": "echo", "prompt": "x", "max_tokens": 100_000, "stream": True}
        async with (
            httpx.AsyncClient(base_url=front.url) as client,
            client.stream("POST", "/v1/completions", json=asked) as reply,
        ):
            lines = reply.aiter_lines()
            await anext(lines)
            async with serving(controller(), port=free_port) as back:
                await serves(back)
                for _ in range(200):  # past the moment when the new controller knows no API process
                    assert "error" not in await anext(lines)
        assert states(front) == ["ready"]


async def test_a_worker_that_dials_out_looks_no_more_for_whom_a_controller_named_that_is_no_more(
    serving, free_port, monkeypatch
):
    leads_to = ["127.0.0.1"]

    async def resolve(url: str) -> tuple[str, ...]:
        return tuple(leads_to)

    monkeypatch.setattr("fastchat_serve.worker.names.resolve", resolve)
    monkeypatch.setattr("fastchat_serve.worker.names.RESOLVE_S", 0.05)
    name = f"http://controllers.example:{free_port}"
    dialled = anyio.Event()

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialled.set()
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as gone:
        advertised = f'advertise = "http://127.0.0.1:{gone.sockets[0].getsockname()[1]}"\n'
        async with serving(worker(name, more='reach = "out"')):
            async with serving(controller(), port=free_port) as there, serving(api(there.url) + advertised):
                with anyio.fail_after(JOIN_S):
                    await dialled.wait()
            leads_to[:] = ["127.0.0.2"]
            with anyio.fail_after(2 * JOIN_S):
                while dialled.is_set():
                    dialled = anyio.Event()
                    with anyio.move_on_after(2 * Backoff.MOST_S):
                        await dialled.wait()


async def test_an_api_beside_the_controller_calls_nodes_as_well_as_its_own_workers(serving):
    together = f'[cluster]\ntoken = "{TOKEN}"\n[controller]\n[api]\n[[worker]]\nbackend = "echo"\nnames = ["echo"]\n'
    async with serving(together) as front, serving(worker(front.url)), serving(api(front.url)) as other:
        await serves(front, 2)
        await serves(other, 2)  # the controller's own among them
        assert await answer(other) == "to be or not"


@pytest.mark.parametrize("beside", [True, False], ids=["the API is the controller", "the API is elsewhere"])
async def test_a_worker_that_dials_out_listens_on_nothing_and_serves(serving, beside):
    async with (
        serving(f"{controller()}[api]\n" if beside else controller()) as there,
        serving(worker(there.url, more='reach = "out"')) as back,
        nullcontext(there) if beside else serving(api(there.url)) as front,
    ):
        assert not isinstance(back, HttpServer)
        await serves(front)
        assert await answer(front) == "to be or not"


async def test_a_worker_that_is_stopped_is_gone_at_once_and_for_good(serving):
    async with serving(controller()) as there, serving(api(there.url)) as front, serving(worker(there.url)):
        async with serving(worker(there.url)) as back:
            await serves(front, 2)
            back.application.refuse()
            await until(lambda: states(front) == ["draining", "ready"], JOIN_S)
        await until(lambda: states(front) == ["ready"], JOIN_S)
        await until(lambda: states(there) == ["ready"], JOIN_S)


async def test_g7_a_worker_that_drains_ends_its_streams_and_gets_no_more(serving):
    async with split(serving, options="delay_ms = 5", workers=1) as (_, front, back):
        async with anyio.create_task_group() as tasks:
            replies: list[httpx.Response] = []

            async def one() -> None:
                replies.append(await ask(front, "x " * 50, max_tokens=1000))

            tasks.start_soon(one)
            await until(lambda: back.application.workers[0].load().running == 1, JOIN_S)
            tasks.start_soon(back.drain)
        (reply,) = replies
        assert reply.json()["choices"][0]["finish_reason"] == "stop"
        gone = await ask(front)
        assert (gone.status_code, gone.headers["retry-after"]) == (503, "1"), "it is likely to come back"


async def test_an_api_that_has_heard_of_no_controller_does_not_say_that_a_model_is_not_there(serving, free_port):
    url = f"http://127.0.0.1:{free_port}"
    async with serving(api(url)) as front, serving(worker(url)):
        unknown = await ask(front)
        assert (unknown.status_code, unknown.headers["retry-after"]) == (503, "1")
        assert "not known yet" in unknown.json()["error"]["message"]
        async with serving(controller(), port=free_port):
            await serves(front)
            assert (await ask(front, model="another")).json()["error"]["code"] == "model_not_found"


async def test_a_controller_that_has_just_started_does_not_say_that_a_model_is_not_there(serving, monkeypatch):
    async with serving(f"{controller()}[api]\n") as front:
        assert (await ask(front)).status_code == 503
        monkeypatch.setattr(cluster, "LEARN_S", 0.0)
        assert (await ask(front)).status_code == 404


@pytest.mark.parametrize("how", ["at the end of its patience", "at once"])
async def test_what_a_worker_cannot_finish_before_it_stops_goes_on_at_another(serving, how):
    patience = "[server]\ndrain_s = 0.1\n"
    async with (
        serving(controller()) as there,
        serving(api(there.url)) as front,
        serving(patience + worker(there.url, options="delay_ms = 5")) as back,
    ):
        await serves(front)
        async with serving(worker(there.url)), anyio.create_task_group() as tasks:
            await serves(front, 2)
            texts: list[str] = []

            async def one() -> None:
                texts.append((await ask(front, "x " * 200, max_tokens=1000)).json()["choices"][0]["text"])

            while not back.application.workers[0].load().running:  # whichever takes it: one must be the slow one
                tasks.start_soon(one)
                await anyio.sleep(0.02)
            if how == "at once":
                back.stop()
            else:
                await back.drain()
        assert set(texts) == {("x " * 200).rstrip()} or set(texts) == {"x " * 200}


async def test_an_api_that_is_told_to_stop_finishes_its_streams_and_refuses_new_ones(serving):
    async with split(serving, options="delay_ms = 5") as (_, front, back):
        async with httpx.AsyncClient(base_url=front.url, timeout=20) as client, anyio.create_task_group() as tasks:
            replies: list[httpx.Response] = []

            async def one() -> None:
                replies.append(await ask(front, "x " * 50, max_tokens=1000))

            assert (await client.get("/ready")).status_code == 200  # and the connection is kept
            tasks.start_soon(one)
            await until(lambda: back.application.workers[0].load().running == 1, JOIN_S)
            front.application.refuse()
            late = await client.post("/v1/completions", json={"model": "echo", "prompt": "x"})
            assert (late.status_code, late.json()["error"]["code"]) == (503, "shutting_down")
            assert (await client.get("/ready")).status_code == 503
            await front.drain()
        assert replies[0].json()["choices"][0]["finish_reason"] == "stop"


async def test_links_that_break_take_a_worker_out_at_once_and_it_comes_back(serving):
    async with split(serving) as (there, front, back):
        for link in back.application.links.node.links:
            link.abort("the test cuts it")
        await until(lambda: states(front) == states(there) == ["lost"], JOIN_S)
        await serves(front)
        await serves(there)
        assert await answer(front) == "to be or not"


async def test_a_slot_is_free_when_the_client_of_another_process_leaves(serving):
    async with split(serving, options="delay_ms = 5\nloop = true") as (_, front, back):
        async with httpx.AsyncClient(base_url=front.url) as client:
            asked = {"model": "echo", "prompt": "x", "max_tokens": 100_000, "stream": True}
            async with client.stream("POST", "/v1/completions", json=asked) as reply:
                await anext(reply.aiter_lines())
                assert back.application.workers[0].load().running == 1
        await until(lambda: back.application.workers[0].load().running == 0, JOIN_S)


async def test_an_api_picks_workers_as_its_controller_says(serving):
    chosen = 'policy = "round_robin"\n[controller.policies]\nother = "lottery"\n'
    async with (
        serving(controller() + chosen) as there,
        serving(api(there.url)) as front,
        serving(worker(there.url)),
        serving(worker(there.url)),
    ):
        await serves(front, 2)
        reply = await ask(front)
        async with httpx.AsyncClient(base_url=front.url) as client:
            why = await client.get(f"/cluster/decisions/{reply.headers['x-request-id']}")
        assert [decision["policy"] for decision in why.json()["decisions"]] == ["round_robin"]


# ------------------------------------------------------------------------------ who is not let in, and why


async def logged(caplog: pytest.LogCaptureFixture, *patterns: str) -> None:
    """Wait until the log has all of these."""
    await until(lambda: all(pattern in caplog.text for pattern in patterns), JOIN_S)


async def test_s1_nobody_is_listed_without_the_clusters_token(serving, caplog):
    async with serving(controller()) as there, serving(worker(there.url, token="another")):
        await logged(caplog, f"Not listed at {there.url}: {there.url} does not accept our cluster.token")
        assert there.application.registry.workers == ()


async def test_an_address_where_nobody_listens_is_told_to_both_sides(serving, caplog, free_port):
    nowhere = f"http://127.0.0.1:{free_port}"
    async with serving(controller()) as there, serving(worker(there.url, more=f'advertise = "{nowhere}"')):
        why = f"its address {nowhere} was called back in vain: nothing listens at {nowhere}"
        await logged(caplog, f"Not listed at {there.url}: {why}", f"A node at 127.0.0.1 is not listed: {why}")
        assert "set worker.advertise" in caplog.text
        assert there.application.registry.workers == ()


async def test_an_address_where_nobody_answers_is_told(serving, caplog):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        nobody = f"http://127.0.0.1:{mute.getsockname()[1]}"
        async with serving(controller()) as there, serving(worker(there.url, more=f'advertise = "{nobody}"')):
            await logged(caplog, f"its address {nobody} was called back in vain: {nobody} does not answer within 2 s")


async def test_an_address_of_another_process_is_told(serving, caplog):
    async with (
        serving(controller()) as there,
        serving(worker(there.url)) as other,
        serving(worker(there.url, more=f'advertise = "{other.url}"')),
    ):
        await logged(caplog, f"Not listed at {there.url}: at its address {other.url} another process answers")


async def test_a_controller_that_is_none_is_told(serving, caplog):
    async with serving(worker("http://127.0.0.1:1")) as nobody, serving(worker(nobody.url)):
        await logged(caplog, "nothing listens at http://127.0.0.1:1", "a controller or an API is to be dialled")


async def test_a_host_that_is_not_known_is_told(serving, caplog):
    async with serving(worker("http://no-such-host.invalid:80")):
        await logged(caplog, "there is no host 'no-such-host.invalid'")


async def test_a_plain_request_to_where_links_begin_is_not_found(serving):
    async with serving(controller()) as there, httpx.AsyncClient(base_url=there.url) as client:
        key = {"authorization": f"Bearer {TOKEN}"}
        assert (await client.get("/cluster/node", headers=key)).status_code == 404
        upgrade = key | {"connection": "upgrade", "upgrade": "fastchat-link/999"}
        refused = await client.get("/cluster/node", headers=upgrade)
        assert (refused.status_code, "same version" in refused.text) == (400, True)


async def test_a_controller_alone_answers_operators_that_have_the_token_and_no_clients(serving):
    async with serving(controller()) as there, serving(worker(there.url)):
        await serves(there)
        async with httpx.AsyncClient(base_url=there.url) as client:
            assert (await client.get("/cluster/workers")).status_code == 401
            key = {"authorization": f"Bearer {TOKEN}"}
            (card,) = (await client.get("/cluster/workers", headers=key)).json()["workers"]
            assert card["state"] == WorkerState.READY
            asked = await client.post("/v1/completions", json={"model": "echo", "prompt": "x"}, headers=key)
            assert asked.status_code == 404


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
