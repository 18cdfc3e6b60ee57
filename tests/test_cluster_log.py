"""What the processes of a cluster log of each other: losses and recoveries in pairs, and by names that can be found."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from fastchat_serve.server import HttpServer
from tests.cluster import TOKEN, api, controller, worker
from tests.end_to_end.role import Role, roles
from tests.end_to_end.waiting import until
from tests.ports import free_ports
from tests.test_cluster import JOIN_S, logged, serves, split, states

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.fixture
def port() -> int:
    (port,) = free_ports(1)
    return port


@asynccontextmanager
async def alone(config: str, folder: Path) -> AsyncIterator[Role]:
    """A process of its own that serves."""
    async with roles() as listed:
        listed.append(Role("one", f"[server]\nport = 0\n{config}", folder))
        await listed[0].start()
        yield listed[0]


def label(back: HttpServer) -> str:
    return f"Node {back.application.links.node.id[:8]} at {back.url}"


def cut(back: HttpServer) -> None:
    for link in back.application.links.node.links:
        link.abort("the test cuts it")


async def said(caplog: pytest.LogCaptureFixture, line: str, times: int) -> None:
    await until(lambda: sum(message.startswith(line) for message in caplog.messages) >= times, JOIN_S)


async def test_a_controller_that_was_missed_is_said_to_be_heard_each_time(serving, caplog, port):
    url = f"http://127.0.0.1:{port}"
    async with serving(api(url)):
        await logged(caplog, f"No controller at {url}: nothing listens")
        for time in (1, 2):
            async with serving(controller(), port=port):
                await said(caplog, f"The controller at {url} is heard.", time)
            await logged(caplog, f"The controller at {url} is not heard any more")


async def test_of_a_controller_that_was_there_from_the_start_nothing_is_said(serving, caplog):
    async with split(serving):
        assert "is heard" not in caplog.text


async def test_a_lost_node_is_told_at_once_and_its_return_too_by_its_address(serving, caplog):
    async with split(serving) as (there, front, back):
        await said(caplog, f"{label(back)} is listed.", 2)  # by both
        cut(back)
        await said(caplog, f"{label(back)} is lost: the ", 2)
        await said(caplog, f"{label(back)} is listed again.", 2)
        await serves(front)
        await serves(there)


async def test_a_node_that_is_lost_again_and_again_is_told_of_once(serving, caplog):
    async with split(serving) as (there, front, back):
        for _ in range(3):
            cut(back)
            await until(lambda: states(front) != ["ready"] and states(there) != ["ready"], JOIN_S)
            await serves(front)
            await serves(there)
        told = [message for message in caplog.messages if message.startswith(label(back))]
        reasons = {message for message in told if " is lost: " in message}
        assert len([message for message in told if " is lost: " in message]) <= 2 * len(reasons)
        assert len([message for message in told if message.endswith("again.")]) <= 2 * len(reasons)


async def test_a_node_that_stops_has_left_and_is_not_lost(serving, caplog):
    async with serving(controller()) as there, serving(api(there.url)) as front, serving(worker(there.url)):
        async with serving(worker(there.url)) as back:
            await serves(front, 2)
            back.application.refuse()
            await until(lambda: states(front) == states(there) == ["draining", "ready"], JOIN_S)
            gone = label(back)
        await said(caplog, f"{gone} has left.", 2)
        assert f"{gone} is lost" not in caplog.text


async def test_a_node_that_has_left_is_not_called_in_vain_whatever_was_said_of_it_before(serving, caplog, port):
    url = f"http://127.0.0.1:{port}"
    async with serving(api(url)) as front:
        async with serving(worker(url)) as back:
            async with serving(controller(), port=port):
                await serves(front)
            async with serving(controller(), port=port) as there:  # which lists it anew
                await serves(there)
                await said(caplog, f"The controller at {url} is heard.", 2)
                back.application.refuse()
                back.stop()
                await until(lambda: states(front) == states(there) == [], JOIN_S)
        assert "cannot be called" not in caplog.text


async def test_who_stops_itself_does_not_complain_of_what_it_closes(serving, caplog):
    async with serving(controller()) as there, serving(worker(there.url)):
        async with serving(api(there.url)) as front:
            await serves(front)
        assert "is lost" not in caplog.text


async def test_a_node_that_cannot_be_called_is_named_by_where_it_is(serving, caplog):
    async with serving(controller()) as there, serving(api(there.url)) as front:
        async with serving(worker(there.url)) as back:
            await serves(front)
            await serves(there)
            gone = label(back)
        await logged(caplog, f"{gone} cannot be called: nothing listens at {gone.split()[-1]}")
        assert f"{gone} has left" not in caplog.text, "it has not said that it would"


async def test_s1_who_is_refused_is_told_of_once_by_its_host_and_its_token_never(serving, caplog):
    async with serving(controller()) as there, serving(worker(there.url, token="another-secret")):
        await logged(caplog, "A process at 127.0.0.1 is refused: ")
        async with httpx.AsyncClient(base_url=there.url) as client:
            offer = {"connection": "upgrade", "upgrade": "fastchat-link/1", "authorization": "Bearer another-secret"}
            assert (await client.get("/cluster/node", headers=offer)).status_code == 401
        assert len([message for message in caplog.messages if "is refused" in message]) == 1
        assert "another-secret" not in caplog.text


async def test_the_list_of_workers_names_the_node_of_each_as_the_log_does(serving):
    async with split(serving) as (there, _, back), httpx.AsyncClient(base_url=there.url) as client:
        key = {"authorization": f"Bearer {TOKEN}"}
        (card,) = (await client.get("/cluster/workers", headers=key)).json()["workers"]
        assert f"Node {card['node'][:8]} at {card['address']}" == label(back)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        pytest.param(controller(), r"Serving as controller at http://\S+\n", id="controller"),
        pytest.param(f"{controller()}[api]\n", r"Serving as controller and API at http://\S+\n", id="both"),
        pytest.param(
            worker("http://127.0.0.1:1", more='reach = "out"'), r"Serving echo to those that it dials", id="out"
        ),
    ],
)
async def test_a_process_says_what_it_is_when_it_serves(tmp_path: Path, config: str, line: str):
    async with alone(config, tmp_path) as one:
        assert re.search(line, one.log), one.log


async def test_a_drain_that_an_operator_asks_for_is_called_so(tmp_path: Path):
    async with alone(controller(), tmp_path) as one:
        (url,) = re.findall(r"Serving as controller at (\S+)", one.log)
        async with httpx.AsyncClient(base_url=url) as client:
            key = {"authorization": f"Bearer {TOKEN}"}
            assert (await client.post("/cluster/drain", headers=key)).status_code == 202
        assert await one.ended() == 0
        assert "An operator drains this process: finishing accepted work." in one.log
        assert signal.SIGTERM.name not in one.log
