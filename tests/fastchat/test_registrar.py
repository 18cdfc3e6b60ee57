"""This process as a worker at a controller of FastChat's."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import httpx
import pytest

from fastchat_serve.config import FastChat
from fastchat_serve.fastchat.registrar import Registrar
from tests.conftest import Serving
from tests.fastchat.acting import Actor, Asked, replies, said
from tests.fastchat.conftest import CONFIG, Ours, until
from tests.ports import free_port

pytestmark = pytest.mark.anyio


class Controller(Actor):
    """That knows who registered."""

    def __init__(self) -> None:
        super().__init__(self.answer)
        self.known: set[str] = set()

    def answer(self, asked: Asked) -> bytes:
        if asked.path == "/register_worker":
            self.known.add(asked.body["worker_name"])
            return said(None)
        return said({"exist": asked.body["worker_name"] in self.known})

    def registrations(self) -> list[Any]:
        return self.asked_for("/register_worker")

    def has_more_than(self, count: int) -> bool:
        """Registrations."""
        return len(self.registrations()) > count

    def beats(self) -> list[Any]:
        return self.asked_for("/receive_heart_beat")


async def test_all_models_are_registered_under_one_address_at_which_they_are_served(ours: Ours) -> None:
    controller = Controller()
    async with controller.listening(), ours(f'controllers = ["{controller.url}"]') as server:
        url = server.url
        await until(lambda: bool(controller.registrations()))
        (asked,) = controller.registrations()
        async with httpx.AsyncClient(base_url=asked["worker_name"]) as http:
            status = (await http.post("/worker_get_status")).json()

    assert asked["worker_name"] == url
    assert asked["check_heart_beat"] is True
    assert asked["worker_status"] == status == {"model_names": ["echo"], "speed": 1, "queue_length": 0}


async def test_it_is_heard_of_again_and_again(ours: Ours) -> None:
    controller = Controller()
    async with controller.listening(), ours(f'beat_s = 0.05\ncontrollers = ["{controller.url}"]') as server:
        await until(lambda: len(controller.beats()) >= 3)

        assert controller.beats()[0] == {"worker_name": server.url, "queue_length": 0}
    assert len(controller.registrations()) == 1


async def test_a_controller_that_forgot_it_hears_everything_again(ours: Ours) -> None:
    controller = Controller()
    async with controller.listening(), ours(f'beat_s = 0.05\ncontrollers = ["{controller.url}"]'):
        await until(lambda: bool(controller.beats()))
        controller.known.clear()
        await until(lambda: len(controller.registrations()) == 2)
    first, second = controller.registrations()
    assert second == first


async def test_a_controller_that_comes_later_is_found(ours: Ours) -> None:
    controller = Controller()
    controller.port = free_port()
    async with ours(f'beat_s = 0.05\ncontrollers = ["{controller.url}"]'):
        for _ in range(2):
            before = len(controller.registrations())
            controller.known.clear()
            async with controller.listening(controller.port):
                await until(partial(controller.has_more_than, before))


async def test_an_address_that_is_configured_is_registered(ours: Ours) -> None:
    controller = Controller()
    async with controller.listening():
        keys = f'advertise = "http://gpu-7:21002"\ncontrollers = ["{controller.url}"]'
        async with ours(keys):
            await until(lambda: bool(controller.registrations()))

    assert controller.registrations()[0]["worker_name"] == "http://gpu-7:21002"


async def test_an_address_at_which_nobody_would_find_us_is_not_registered(
    ours: Ours, caplog: pytest.LogCaptureFixture
) -> None:
    controller, nobody = Controller(), free_port()
    async with controller.listening(), ours() as server, anyio.create_task_group() as tasks:
        registrar = Registrar(controller.url, FastChat(), server.application.registry, "http")
        registrar.listening(nobody)
        tasks.start_soon(registrar.run)
        await until(lambda: "fastchat.advertise" in caplog.text)
        tasks.cancel_scope.cancel()

    assert not controller.registrations()
    assert f"127.0.0.1:{nobody}" in caplog.text


async def test_models_that_come_later_are_registered_then(ours: Ours) -> None:
    """Those of other workers of FastChat's as well: its controllers can be stacked."""
    controller, worker = Controller(), Actor(replies("tiny"))
    async with (
        controller.listening(),
        worker.listening(),
        ours(f'beat_s = 0.05\ncontrollers = ["{controller.url}"]') as server,
        httpx.AsyncClient(base_url=server.url) as http,
    ):
        await until(lambda: bool(controller.registrations()))
        body = {"worker_name": worker.url, "check_heart_beat": False, "worker_status": None}
        await http.post("/register_worker", json=body)
        await until(lambda: len(controller.registrations()) == 2)

    assert controller.registrations()[-1]["worker_status"]["model_names"] == ["echo", "tiny"]


async def test_who_drains_is_heard_of_no_more(serving: Serving) -> None:
    controller = Controller()
    async with controller.listening():
        config = CONFIG.format(fastchat=f'beat_s = 0.05\ncontrollers = ["{controller.url}"]')
        async with serving(config) as server:
            await until(lambda: bool(controller.beats()))
            server.application.refuse()
            async with httpx.AsyncClient(base_url=server.url) as http:
                status = (await http.post("/worker_get_status")).json()

    assert status["model_names"] == []
