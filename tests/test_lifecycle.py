"""What operators do while all runs, over HTTP: drain, load, unload, reload, aliases; here and on other nodes."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from fastchat_serve.server import HttpServer
from fastchat_serve.worker.base import WorkerState
from tests.cluster import TOKEN, api, controller, worker
from tests.end_to_end.waiting import until
from tests.gated import Gate

pytestmark = pytest.mark.anyio

SOON_S = 10.0
"""Generous: the machine may be busy."""
KEY = "sk-client"
ONE = f"""
[cluster]
token = "{TOKEN}"
[controller]
[api]
keys = ["{KEY}"]
[[worker]]
backend = "gated"
names = ["echo"]
[worker.options]
delay_ms = 1
"""


@pytest.fixture
def gate() -> Gate:
    return Gate(is_open=True)


class Operator:
    """Asks with the cluster's token."""

    def __init__(self, server: HttpServer, key: str = TOKEN) -> None:
        self._http = httpx.AsyncClient(base_url=server.url, headers={"authorization": f"Bearer {key}"}, timeout=20)

    async def __aenter__(self) -> Operator:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._http.__aexit__(*exc_info)

    async def ask(self, path: str, body: Any = None, method: str = "POST") -> httpx.Response:
        return await self._http.request(method, path, json=body)

    async def send(self, path: str, body: bytes) -> httpx.Response:
        return await self._http.post(path, content=body, headers={"content-type": "application/json"})

    async def told(self, path: str, body: Any = None) -> list[dict[str, Any]]:
        """All events of an operation."""
        reply = await self.ask(path, body)
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"].startswith("text/event-stream")
        return [json.loads(line.removeprefix("data: ")) for line in reply.text.split("\n\n") if line]

    async def models(self, key: str = KEY) -> list[str]:
        listed = await self._http.get("/v1/models", headers={"authorization": f"Bearer {key}"})
        return [model["id"] for model in listed.json()["data"]]

    async def answer(self, model: str, prompt: str = "to be or not", **more: Any) -> httpx.Response:
        body = {"model": model, "prompt": prompt, "max_tokens": 10_000, **more}
        return await self._http.post("/v1/completions", json=body, headers={"authorization": f"Bearer {KEY}"})


@asynccontextmanager
async def operated(serving: Any, gate: Gate, toml: str = ONE) -> AsyncIterator[tuple[HttpServer, Operator]]:
    async with serving(toml, gate.plugins) as server, Operator(server) as operator:
        yield server, operator


ROUTES = [
    ("/cluster/drain", None),
    ("/cluster/workers/x/drain", None),
    ("/cluster/models/load", {"backend": "gated"}),
    ("/cluster/models/unload", {"name": "echo"}),
    ("/cluster/models/reload", {"name": "echo"}),
    ("/cluster/aliases", {"name": "a", "model": "echo"}),
]


# --------------------------------------------------------------------------------------- who may


@pytest.mark.parametrize(("path", "body"), ROUTES, ids=[path for path, _ in ROUTES])
async def test_s17_an_api_key_is_not_enough_to_change_what_is_served(serving, gate, path, body):
    async with serving(ONE, gate.plugins) as server:
        async with Operator(server, KEY) as client:
            reply = await client.ask(path, body)
            assert (reply.status_code, reply.json()["error"]["code"]) == (403, "forbidden")
        async with Operator(server, "wrong") as stranger:
            assert (await stranger.ask(path, body)).status_code == 401
        assert [each.state for each in server.application.workers] == [WorkerState.READY]


@pytest.mark.parametrize(("path", "body"), ROUTES, ids=[path for path, _ in ROUTES])
async def test_without_a_token_nobody_is_an_operator_and_it_is_said_what_to_set(serving, gate, path, body):
    toml = ONE.replace(f'token = "{TOKEN}"', "").replace(f'keys = ["{KEY}"]', "")
    async with operated(serving, gate, toml) as (_, operator):
        reply = await operator.ask(path, body)
        assert reply.status_code == 403
        assert "set cluster.token" in reply.json()["error"]["message"]


async def test_operators_may_also_read_the_list_of_workers_but_are_no_clients(serving, gate):
    async with operated(serving, gate) as (_, operator):
        assert (await operator.ask("/cluster/workers", method="GET")).status_code == 200
        assert (await operator.ask("/v1/models", method="GET")).status_code == 401


# ------------------------------------------------------------------------------------------- load


async def test_a_model_is_loaded_while_the_server_runs_and_its_progress_is_told(serving, gate):
    gate.close()
    gate.open()
    async with operated(serving, gate) as (server, operator), anyio.create_task_group() as tasks:
        gate.close()
        told: list[dict[str, Any]] = []

        async def load() -> None:
            told.extend(await operator.told("/cluster/models/load", {"backend": "gated", "names": ["two"]}))

        tasks.start_soon(load)
        await until(lambda: gate.loads == 2, SOON_S)
        assert await operator.models() == ["echo", "two"]
        gate.engines[-1].progress("reading weights", 0.5)
        refused = await operator.answer("two")
        assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (503, True)
        with anyio.fail_after(SOON_S):
            await anyio.sleep(0.25)  # a look of the route's is not announced
        gate.open()
        await until(lambda: bool(told), SOON_S)
        assert (await operator.answer("two")).status_code == 200
        assert any(event["workers"][0]["fraction"] == 0.5 for event in told if event["workers"])
        assert [event["done"] for event in told] == [False] * (len(told) - 1) + [True]
        assert told[-1]["workers"][0]["state"] == "ready"
        assert told[-1]["workers"][0]["id"] == server.application.workers[1].id


async def test_what_an_operator_has_done_is_logged_with_workers_and_names(serving, gate, caplog):
    caplog.set_level(logging.INFO, logger="fastchat_serve.controller.operations")
    async with operated(serving, gate) as (server, operator):
        await operator.told("/cluster/models/load", {"backend": "gated", "names": ["two"]})
        loaded = server.application.workers[1].id
        await operator.ask("/cluster/aliases", {"name": "prod", "model": "two"})
        await operator.ask("/cluster/aliases/prod", method="DELETE")
        await operator.told("/cluster/models/reload", {"name": "two"})
        fresh = server.application.workers[1].id
        await operator.told("/cluster/models/unload", {"name": "two"})
    assert [record.message for record in caplog.records if record.name == "fastchat_serve.controller.operations"] == [
        "Load of two (backend gated) begins: an operator wants it.",
        f"Load of two (backend gated) is done: there is worker {loaded} (two).",
        f"Worker {loaded} is called 'prod' as well.",
        f"Worker {loaded} is not called 'prod' any more.",
        f"Reload of worker {loaded} (two) begins: an operator wants it.",
        f"Reload of worker {loaded} (two) is done: there is worker {fresh} (two).",
        f"Unload of worker {fresh} (two) begins: an operator wants it.",
        f"Unload of worker {fresh} (two) is done.",
    ]


async def test_a_load_that_fails_is_logged_with_its_reason(serving, gate, caplog):
    async with operated(serving, gate) as (_, operator):
        gate.failure = "no such weights"
        await operator.told("/cluster/models/load", {"backend": "gated", "names": ["two"]})
    (line,) = (message for message in caplog.messages if message.startswith("Load of two"))
    assert line.startswith("Load of two (backend gated) failed: ")
    assert "no such weights" in line


async def test_a_load_goes_on_when_whoever_began_it_has_left(serving, gate):
    async with operated(serving, gate) as (server, operator):
        gate.close()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(operator.told, "/cluster/models/load", {"backend": "gated", "names": ["two"]})
            await until(lambda: gate.loads == 2, SOON_S)
            tasks.cancel_scope.cancel()
        gate.open()
        await until(lambda: [each.state for each in server.application.workers] == [WorkerState.READY] * 2, SOON_S)


async def test_a_model_that_cannot_be_loaded_is_told_why_and_leaves_nothing_behind(serving, gate):
    async with operated(serving, gate) as (server, operator):
        gate.failure = "no such weights"
        *_, last = await operator.told("/cluster/models/load", {"backend": "gated", "names": ["two"]})
        assert last["error"]["code"] == "load_failed"
        assert "no such weights" in last["error"]["message"]
        assert len(server.application.workers) == len(server.application.registry.workers) == 1
        assert await operator.models() == ["echo"]
        await until(lambda: len(gate.engines) == 1, SOON_S)


@pytest.mark.parametrize(
    ("table", "param", "message"),
    [
        ({"backend": "gated", "concurency": 2}, "concurency", 'Did you mean "concurrency"?'),
        ({"backend": "gated", "concurrency": 0}, "concurrency", "from 1 to 65536"),
        ({"backend": "gated", "options": {"delay": 1}}, "options.delay", "unknown key"),
        ({"backend": "gated", "names": ["a", "a"]}, "names.1", "already a name"),
        ({"backend": "gated", "tool_parser": "none"}, "tool_parser", "no such parser"),
        ({"backend": "gated", "reach": "out"}, "reach", "as in worker.0"),
        ({"backend": "gated", "model": "./nowhere"}, "model", "no such folder"),
        ({"backend": "nobody"}, "backend", "No plugin is called 'nobody'"),
        ({}, "backend", "missing"),
    ],
)
async def test_a_mistake_in_the_table_is_told_by_its_key_before_anything_is_loaded(
    serving, gate, table, param, message
):
    async with operated(serving, gate) as (server, operator):
        reply = await operator.ask("/cluster/models/load", table)
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (400, param)
        assert message in error["message"]
        assert len(server.application.workers) == 1


HOSTILE = [
    b"",
    b"[]",
    b"null",
    b"{",
    b'"x"',
    b'{"backend": ' + b"[" * 100 + b"]" * 100 + b"}",
    b'{"backend": "gated", "names": "' + b"x" * 10_000 + b'"}',
    b'{"backend": "../../etc/passwd"}',
    b'{"backend": "gated", "options": []}',
    b'{"backend": "gated", "options": {"raw": "zz"}}',
    b'{"backend": "gated", "timeouts": {"queue_s": -1}}',
    b'{"backend": "gated", "idle_unload_s": 0}',
    b'{"name": "\\ud800", "model": "echo"}',
    b'{"name": "", "model": "echo"}',
    b'{"name": "' + b"x" * 1000 + b'", "model": "echo"}',
    b'{"name": "x", "model": null}',
    b'{"name": "x", "model": "none"}',
]


@pytest.mark.parametrize("path", ["models/load", "models/unload", "models/reload", "aliases"])
async def test_s9_no_body_breaks_anything(serving, gate, path):
    async with operated(serving, gate) as (server, operator):
        for body in HOSTILE:
            reply = await operator.send(f"/cluster/{path}", body)
            assert reply.status_code in (400, 404), (body, reply.text)
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
        assert [each.state for each in server.application.workers] == [WorkerState.READY]
        assert await operator.models() == ["echo"]


@pytest.mark.parametrize("toml", [controller(), api("http://127.0.0.1:1")])
async def test_a_process_without_workers_says_where_to_load_instead(serving, gate, toml):
    async with serving(toml, gate.plugins) as there, Operator(there) as operator:
        reply = await operator.ask("/cluster/models/load", {"backend": "gated"})
        assert reply.status_code == 400
        assert reply.json()["error"]["message"].startswith("This process was started without workers")
        assert "--beside WORKER_ID" in reply.json()["error"]["message"]


async def test_a_server_may_start_with_no_model_at_all(serving, gate):
    async with operated(serving, gate, ONE[: ONE.index("[[worker]]")]) as (server, operator):
        assert await operator.models() == []
        await operator.told("/cluster/models/load", {"backend": "gated", "names": ["one"]})
        assert (await operator.answer("one")).status_code == 200
        async with serving(api(server.url), gate.plugins) as other:
            await until(lambda: other.application.registry.models == ("one",), SOON_S)


# ------------------------------------------------------------------------------- drain and unload


async def test_g7_a_worker_that_is_drained_finishes_what_it_has_and_is_gone(serving, gate):
    async with operated(serving, gate) as (server, operator), anyio.create_task_group() as tasks:
        (only,) = server.application.workers
        replies: list[httpx.Response] = []

        async def ask() -> None:
            replies.append(await operator.answer("echo", "x " * 500))

        tasks.start_soon(ask)
        await until(lambda: only.load().running == 1, SOON_S)
        told = await operator.told(f"/cluster/workers/{only.id}/drain")
        assert replies[0].json()["choices"][0]["text"] == "x " * 500
        assert ("draining", 1) in [(each["workers"][0]["state"], each["workers"][0]["running"]) for each in told]
        assert (told[-1]["done"], told[-1]["workers"][0]["state"]) == (True, "gone")
        assert await operator.models() == []
        assert gate.engines == []


async def test_work_that_is_not_done_in_time_ends_with_an_error(serving, gate):
    short = ONE.replace("[cluster]", "[server]\ndrain_s = 0.2\n[cluster]").replace("delay_ms = 1", "loop = true")
    async with operated(serving, gate, short) as (server, operator), anyio.create_task_group() as tasks:
        (only,) = server.application.workers
        replies: list[httpx.Response] = []

        async def ask() -> None:
            replies.append(await operator.answer("echo", max_tokens=100_000, stream=True))

        tasks.start_soon(ask)
        await until(lambda: only.load().running == 1, SOON_S)
        await operator.told("/cluster/models/unload", {"name": "echo"})
        await until(lambda: bool(replies), SOON_S)
        assert "being unloaded" in replies[0].text


async def test_unloading_frees_a_model_and_one_on_demand_comes_back(serving, gate):
    lazy = ONE.replace("[worker.options]", 'load = "first_request"\n[worker.options]')
    async with operated(serving, gate, lazy) as (server, operator):
        assert (await operator.answer("echo")).status_code == 200
        told = await operator.told("/cluster/models/unload", {"name": server.application.workers[0].id})
        assert told[-1]["workers"][0]["state"] == "unloaded"
        assert gate.engines == []
        assert (await operator.answer("echo")).status_code == 200


@pytest.mark.parametrize("loaded", [True, False])
async def test_a_worker_on_demand_can_be_drained_for_good_and_reloaded(serving, gate, loaded):
    lazy = ONE.replace("[worker.options]", 'load = "first_request"\n[worker.options]')
    async with operated(serving, gate, lazy) as (server, operator):
        if loaded:
            await operator.answer("echo")
        await operator.told("/cluster/models/reload", {"name": "echo"})
        (only,) = server.application.workers
        assert (only.state, gate.engines) == (WorkerState.UNLOADED, [])
        assert (await operator.answer("echo")).status_code == 200
        await operator.told(f"/cluster/workers/{only.id}/drain")
        assert (server.application.workers, gate.engines) == ((), [])


async def test_a_load_that_takes_too_long_can_be_given_up(serving, gate):
    async with operated(serving, gate) as (server, operator), anyio.create_task_group() as tasks:
        gate.close()
        told: list[dict[str, Any]] = []

        async def load() -> None:
            told.extend(await operator.told("/cluster/models/load", {"backend": "gated", "names": ["two"]}))

        tasks.start_soon(load)
        await until(lambda: gate.loads == 2, SOON_S)
        await operator.told("/cluster/models/unload", {"name": "two"})
        await until(lambda: bool(told), SOON_S)
        assert "before it was loaded" in told[-1]["error"]["message"]
        assert len(server.application.workers) == 1
        gate.open()


@pytest.mark.parametrize("body", [{}, {"name": 1}, {"name": "echo", "worker": "x"}])
async def test_it_has_to_be_said_what_is_to_be_unloaded(serving, gate, body):
    async with operated(serving, gate) as (_, operator):
        assert (await operator.ask("/cluster/models/unload", body)).status_code == 400


async def test_what_is_not_known_cannot_be_unloaded(serving, gate):
    async with operated(serving, gate) as (_, operator):
        for path, body in (("/cluster/models/unload", {"name": "none"}), ("/cluster/workers/none/drain", None)):
            reply = await operator.ask(path, body)
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")


# ------------------------------------------------------------------------------------------ reload


async def test_a_reloaded_model_has_a_fresh_engine_and_is_known_all_the_time(serving, gate):
    async with operated(serving, gate) as (server, operator), anyio.create_task_group() as tasks:
        (before,) = server.application.workers
        gate.close()
        told: list[dict[str, Any]] = []

        async def reload() -> None:
            told.extend(await operator.told("/cluster/models/reload", {"name": "echo"}))

        tasks.start_soon(reload)
        await until(lambda: gate.loads == 2, SOON_S)
        assert await operator.models() == ["echo"]
        assert (await operator.answer("echo")).status_code == 503
        assert len(gate.engines) == 1, "the one before is gone"
        gate.open()
        await until(lambda: bool(told), SOON_S)
        (after,) = server.application.workers
        assert [each["id"] for each in told[-1]["workers"]] == [before.id, after.id]
        assert [each["state"] for each in told[-1]["workers"]] == ["gone", "ready"]
        assert (await operator.answer("echo")).status_code == 200


async def test_several_workers_of_a_model_are_reloaded_one_after_the_other(serving, gate):
    two = ONE + ONE[ONE.index("[[worker]]") :]
    async with operated(serving, gate, two) as (_, operator), anyio.create_task_group() as tasks:
        codes: list[int] = []
        over = anyio.Event()

        async def ask_all_the_time() -> None:
            while not over.is_set():
                codes.append((await operator.answer("echo")).status_code)

        tasks.start_soon(ask_all_the_time)
        await until(lambda: len(codes) > 3, SOON_S)
        told = await operator.told("/cluster/models/reload", {"name": "echo"})
        over.set()
        assert len(told[-1]["workers"]) == 4
        assert set(codes) == {200}
        assert gate.loads == 4


async def test_one_worker_is_not_unloaded_and_reloaded_at_once(serving, gate):
    async with operated(serving, gate) as (server, operator), anyio.create_task_group() as tasks:
        (only,) = server.application.workers
        gate.close()
        tasks.start_soon(operator.answer, "echo", "x " * 200)
        await until(lambda: only.load().running == 1, SOON_S)
        tasks.start_soon(operator.told, "/cluster/models/reload", {"name": only.id})
        await until(lambda: only.state is WorkerState.DRAINING, SOON_S)
        *_, last = await operator.told("/cluster/models/unload", {"name": only.id})
        assert "already" in last["error"]["message"]
        gate.open()


# ------------------------------------------------------------------------------------------ aliases


async def test_a_model_is_called_by_another_name_and_then_not_any_more(serving, gate):
    async with operated(serving, gate) as (server, operator):
        called = await operator.ask("/cluster/aliases", {"name": "org/prod", "model": "echo"})
        assert called.json()["workers"] == [server.application.workers[0].id]
        assert await operator.models() == ["echo", "org/prod"]
        assert (await operator.answer("org/prod")).status_code == 200
        assert (await operator.ask("/cluster/aliases/org/prod", method="DELETE")).status_code == 200
        assert await operator.models() == ["echo"]
        assert (await operator.ask("/cluster/aliases/org/prod", method="DELETE")).status_code == 404


async def test_an_alias_moves_to_another_model_and_outlives_a_reload(serving, gate):
    async with operated(serving, gate) as (server, operator):
        await operator.told("/cluster/models/load", {"backend": "gated", "names": ["two"]})
        for model in ("echo", "two"):
            await operator.ask("/cluster/aliases", {"name": "prod", "model": model})
        await operator.told("/cluster/models/reload", {"name": "two"})
        registry = server.application.registry
        assert registry.serving("prod") == registry.serving("two")
        assert len(registry.serving("prod")) == 1


async def test_a_name_by_config_is_no_alias(serving, gate):
    async with operated(serving, gate) as (_, operator):
        await operator.told("/cluster/models/load", {"backend": "gated", "names": ["two"]})
        moved = await operator.ask("/cluster/aliases", {"name": "echo", "model": "two"})
        dropped = await operator.ask("/cluster/aliases/echo", method="DELETE")
        for reply in (moved, dropped):
            assert (reply.status_code, "own name" in reply.json()["error"]["message"]) == (400, True)
        assert await operator.models() == ["echo", "two"]
        assert (await operator.answer("two")).status_code == 200


# ---------------------------------------------------------------------------------- on other nodes


@asynccontextmanager
async def split(serving: Any, gate: Gate) -> AsyncIterator[tuple[HttpServer, HttpServer, HttpServer, Operator]]:
    """A controller, an API and a worker; the operator asks the controller."""
    gated = worker("{url}", options="delay_ms = 1").replace('"echo"', '"gated"', 1)
    async with (
        serving(controller()) as there,
        serving(api(there.url)) as front,
        serving(gated.replace("{url}", there.url), gate.plugins) as back,
        Operator(there) as operator,
    ):
        for server in (there, front):
            await until(lambda server=server: states(server) == ["ready"], SOON_S)  # type: ignore[misc]
        yield there, front, back, operator


def states(server: HttpServer, model: str = "echo") -> list[str]:
    return sorted(each.state.value for each in server.application.registry.serving(model))


async def test_a_worker_elsewhere_is_drained_by_way_of_its_controller(serving, gate):
    async with split(serving, gate) as (there, front, back, operator), anyio.create_task_group() as tasks:
        (only,) = back.application.workers
        replies: list[httpx.Response] = []

        async def ask() -> None:
            async with Operator(front) as client:
                replies.append(await client.answer("echo", "x " * 200))

        tasks.start_soon(ask)
        await until(lambda: only.load().running == 1, SOON_S)
        told = await operator.told(f"/cluster/workers/{only.id}/drain")
        assert (told[-1]["done"], told[-1]["workers"][0]["state"]) == (True, "gone")
        await until(lambda: bool(replies), SOON_S)
        assert replies[0].json()["choices"][0]["text"] == "x " * 200
        assert back.application.workers == ()
        for server in (there, front):
            await until(lambda server=server: states(server) == [], SOON_S)  # type: ignore[misc]


async def test_a_model_elsewhere_is_reloaded_and_renamed_by_way_of_its_controller(serving, gate):
    async with split(serving, gate) as (there, front, back, operator):
        await operator.ask("/cluster/aliases", {"name": "prod", "model": "echo"})
        (before,) = back.application.workers
        *_, last = await operator.told("/cluster/models/reload", {"name": "prod"})
        (fresh,) = back.application.workers
        assert gate.loads == 2
        assert [(each["id"], each["state"]) for each in last["workers"]] == [(before.id, "gone"), (fresh.id, "ready")]
        await until(lambda: states(front, "prod") == states(there, "prod") == ["ready"], SOON_S)
        async with Operator(front) as client:
            assert (await client.answer("prod")).status_code == 200
        assert back.application.workers[0].names == ("echo", "prod")
        assert (await operator.ask("/cluster/aliases/prod", method="DELETE")).status_code == 200
        await until(lambda: front.application.registry.models == ("echo",), SOON_S)


async def test_what_goes_wrong_elsewhere_is_told_here(serving, gate):
    async with split(serving, gate) as (_, _, back, operator):
        gate.failure = "no such weights"
        *_, last = await operator.told("/cluster/models/reload", {"name": back.application.workers[0].id})
        assert (last["error"]["code"], "no such weights" in last["error"]["message"]) == ("load_failed", True)
        refused = await operator.ask("/cluster/aliases/echo", method="DELETE")
        assert refused.status_code == 404


async def test_a_model_that_is_loaded_on_a_node_is_known_everywhere(serving, gate):
    async with split(serving, gate) as (_, front, back, _), Operator(back) as operator:
        await operator.told("/cluster/models/load", {"backend": "gated", "names": ["two"]})
        await until(lambda: states(front, "two") == ["ready"], SOON_S)
        async with Operator(front) as client:
            assert (await client.answer("two")).status_code == 200


async def test_a_model_is_loaded_beside_a_worker_elsewhere_and_its_progress_is_told_here(serving, gate):
    async with split(serving, gate) as (there, front, back, operator), anyio.create_task_group() as tasks:
        beside = f"/cluster/models/load?beside={back.application.workers[0].id}"
        gate.close()
        told: list[dict[str, Any]] = []

        async def load() -> None:
            told.extend(await operator.told(beside, {"backend": "gated", "names": ["two"]}))

        tasks.start_soon(load)
        await until(lambda: gate.loads == 2, SOON_S)
        gate.engines[-1].progress("reading weights", 0.5)
        await until(lambda: states(front, "two") == ["loading"], SOON_S)
        heard = there.application.registry.serving
        await until(lambda: any(each.progress.fraction == 0.5 for each in heard("two")), SOON_S)
        await anyio.sleep(0.5)  # a look of the route's is not announced
        gate.open()
        await until(lambda: bool(told), SOON_S)
        assert any(event["workers"][0]["fraction"] == 0.5 for event in told if event["workers"])
        assert [(each["id"], each["state"]) for each in told[-1]["workers"]] == [
            (back.application.workers[1].id, "ready")
        ]


async def test_a_mistake_in_a_table_for_elsewhere_is_told_by_its_key_too(serving, gate):
    async with split(serving, gate) as (_, _, back, operator):
        beside = f"/cluster/models/load?beside={back.application.workers[0].id}"
        (error,) = [
            each["error"] for each in await operator.told(beside, {"backend": "gated", "queu": 1}) if "error" in each
        ]
        assert error["param"] == "queu"
        gate.failure = "no such weights"
        *_, last = await operator.told(beside, {"backend": "gated", "names": ["two"]})
        assert (last["error"]["code"], len(back.application.workers)) == ("load_failed", 1)
        unknown = await operator.ask("/cluster/models/load?beside=nobody", {"backend": "gated"})
        assert unknown.status_code == 404


async def test_a_model_is_loaded_in_a_process_that_nobody_can_dial(serving, gate):
    out = worker("{url}", more='reach = "out"').replace('"echo"', '"gated"', 1)
    async with (
        serving(f"{controller()}[api]\n") as there,
        serving(out.replace("{url}", there.url), gate.plugins),
        Operator(there) as operator,
    ):
        await until(lambda: states(there) == ["ready"], SOON_S)
        (remote,) = there.application.registry.serving("echo")
        await operator.told(f"/cluster/models/load?beside={remote.id}", {"backend": "gated", "names": ["two"]})
        assert states(there, "two") == ["ready"]
        assert (await operator.answer("two")).status_code == 200
