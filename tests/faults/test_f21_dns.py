"""F21: a name server fails, or gives other answers than before: what was known is kept, and what is new is followed."""

from __future__ import annotations

import asyncio

import pytest

from fastchat_serve.worker.dial import DialError
from tests.cluster import api, controller, worker
from tests.end_to_end.waiting import until
from tests.ports import free_ports
from tests.test_cluster import JOIN_S, answer, logged, serves, states

pytestmark = pytest.mark.anyio

HOST = "controllers.example"


class NameServer:
    """Says what it is told to; None: it does not answer. Asked often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: tuple[str, ...] | None = None
        self.asked = 0
        monkeypatch.setattr("fastchat_serve.worker.names.resolve", self._resolve)
        monkeypatch.setattr("fastchat_serve.worker.names.RESOLVE_S", 0.05)

    async def _resolve(self, url: str) -> tuple[str, ...]:
        self.asked += 1
        await asyncio.sleep(0)
        if self.answer is None:
            raise DialError(f"the name server does not answer for {HOST!r}")
        return self.answer

    async def is_asked_again(self) -> None:
        before = self.asked
        await until(lambda: self.asked > before + 1, JOIN_S)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> NameServer:
    return NameServer(monkeypatch)


async def test_f21_a_name_that_is_not_known_at_the_start_is_told_and_found_later(serving, names, caplog):
    (port,) = free_ports(1)
    url = f"http://{HOST}:{port}"
    async with serving(controller(), port=port), serving(worker(url)), serving(api(url)) as front:
        await logged(caplog, f"Cannot find {url}: the name server does not answer for '{HOST}'")
        names.answer = ("127.0.0.1",)
        await serves(front)


async def test_f21_while_the_name_server_is_silent_the_last_good_address_is_dialled(serving, names):
    (port,) = free_ports(1)
    url = f"http://{HOST}:{port}"
    names.answer = ("127.0.0.1",)
    async with serving(worker(url)), serving(api(url)) as front:
        async with serving(controller(), port=port) as there:
            await serves(front)
            await serves(there)
            names.answer = None
            await names.is_asked_again()
        async with serving(controller(), port=port) as again:
            await serves(again)
            assert await answer(front) == "to be or not"


async def test_f21_a_controller_that_has_moved_is_followed_and_its_old_address_left_alone(serving, names):
    (port,) = free_ports(1)
    url = f"http://{HOST}:{port}"
    names.answer = ("127.0.0.1",)
    async with serving(worker(url)), serving(api(url)) as front:
        async with serving(controller(), port=port):
            await serves(front)
        names.answer = ("127.0.0.2",)
        moved = controller(more='[server]\nhost = "127.0.0.2"\n')
        async with serving(moved, port=port) as there:
            await serves(there)
            assert states(front) == ["ready"]
            assert await answer(front) == "to be or not"
            visits = 0

            async def visit(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                nonlocal visits
                visits += 1
                writer.close()

            async with await asyncio.start_server(visit, "127.0.0.1", port):
                await asyncio.sleep(2.0)  # whoever still dialled would have come by now
            assert visits == 0
