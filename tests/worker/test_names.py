"""One task for each address that a name leads to, from when it is found until it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from fastchat_serve.worker.complaints import Complaints
from fastchat_serve.worker.dial import DialError
from fastchat_serve.worker.names import Names

pytestmark = pytest.mark.anyio

URL = "http://controllers.example:8000"


class Followed:
    """A name that leads where it is told to (nowhere: the name server fails), and the tasks of its addresses."""

    def __init__(self) -> None:
        self.answer: tuple[str, ...] = ()
        self.asked, self.running = 0, Counter[str]()
        self.names = Names([URL], self._keep, Complaints())

    async def resolve(self, url: str) -> tuple[str, ...]:
        self.asked += 1
        if not self.answer:
            raise DialError("the name server does not answer")
        return self.answer

    async def leads_to(self, *answer: str) -> Counter[str]:
        """Which tasks run once it leads there, and that was noticed."""
        self.answer = answer
        noticed = self.asked + 3
        with anyio.fail_after(10):
            while self.asked < noticed:  # noqa: ASYNC110 - it is asked by others
                await anyio.sleep(0.001)
            while any(not self.names.leads_to(URL, at) for at in +self.running):  # noqa: ASYNC110 - they end soon
                await anyio.sleep(0.001)
        return +self.running

    async def _keep(self, url: str, at: str) -> None:
        self.running[at] += 1
        while self.names.leads_to(url, at):  # noqa: ASYNC110 - as those do that dial again and again
            await anyio.sleep(0.001)
        self.running[at] -= 1


@asynccontextmanager
async def following(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Followed]:
    followed = Followed()
    monkeypatch.setattr("fastchat_serve.worker.names.resolve", followed.resolve)
    monkeypatch.setattr("fastchat_serve.worker.names.RESOLVE_S", 0.001)
    async with anyio.create_task_group() as tasks:
        await tasks.start(followed.names.run)
        yield followed
        tasks.cancel_scope.cancel()


async def test_each_address_has_one_task_from_when_the_name_leads_there_until_it_does_no_more(monkeypatch):
    async with following(monkeypatch) as name:
        assert await name.leads_to("10.0.0.1", "10.0.0.2") == {"10.0.0.1": 1, "10.0.0.2": 1}
        assert await name.leads_to("10.0.0.2", "10.0.0.3") == {"10.0.0.2": 1, "10.0.0.3": 1}
        assert await name.leads_to("10.0.0.1") == {"10.0.0.1": 1}


async def test_while_a_name_is_not_found_its_last_addresses_are_kept(monkeypatch, caplog):
    async with following(monkeypatch) as name:
        await name.leads_to("10.0.0.1")
        assert await name.leads_to() == {"10.0.0.1": 1}
    assert caplog.messages == [f"Cannot find {URL}: the name server does not answer"]
