"""A worker that has an engine only while somebody wants it: one load for many, unloaded when idle, nothing kept."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import psutil
import pytest

from fastchat_serve.config import Config, Timeouts, Worker
from fastchat_serve.errors import Overloaded, Unavailable
from fastchat_serve.making import make_worker
from fastchat_serve.plugins import Plugins
from fastchat_serve.worker import on_demand
from fastchat_serve.worker.base import LoadProgress, WorkerState
from fastchat_serve.worker.on_demand import OnDemandWorker
from tests.gated import Gate
from tests.sinks import Remembering, a_request
from tests.worker.every_worker import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def gate() -> Gate:
    return Gate()


@asynccontextmanager
async def running(gate: Gate, **table: Any) -> AsyncIterator[OnDemandWorker]:
    settings = {"load": "first_request", "concurrency": 2, "queue": 1} | table
    config = Config(worker=(Worker(backend="gated", names=("m",), **settings),))
    worker = make_worker(config, 0, gate.plugins, lambda stage, fraction=None: None)
    assert isinstance(worker, OnDemandWorker)
    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(20):
            await tasks.start(worker.run)
            try:
                yield worker
            finally:
                worker.stop()


async def answer(worker: OnDemandWorker) -> str:
    sink = Remembering()
    worker.start(a_request(), sink)
    return (await sink.ended()).text


async def the_thread_that_made_it_lets_go() -> None:
    """Of what it made. As a rule loading takes long enough."""
    await anyio.to_thread.run_sync(lambda: None)


async def test_it_has_no_engine_before_somebody_wants_it(gate):
    async with running(gate) as worker:
        assert (worker.state, worker.wakes) == (WorkerState.UNLOADED, True)
        assert gate.engines == []
        with pytest.raises(Unavailable):
            worker.start(a_request(), Remembering())
        gate.open()
        await worker.wake()
        assert (worker.state, worker.wakes) == (WorkerState.READY, False)
        assert await answer(worker)


async def test_many_that_want_it_wait_for_one_load(gate):
    async with running(gate) as worker, anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(worker.wake)
        await until(lambda: worker.load().waiting == 3 and gate.loads == 1)
        assert worker.full
        gate.open()
    assert gate.loads == 1


async def test_no_more_wait_than_could_be_served_then(gate):
    async with running(gate) as worker, anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(worker.wake)
        await until(lambda: worker.load().waiting == 3)
        with pytest.raises(Overloaded) as refused:
            await worker.wake()
        assert refused.value.retry_after_s >= 1
        gate.open()


async def test_nobody_waits_for_longer_than_requests_may(gate):
    async with running(gate, timeouts=Timeouts(queue_s=0.05)) as worker:
        with pytest.raises(Unavailable) as refused:
            await worker.wake()
        assert (refused.value.code, refused.value.retry_after_s >= 1) == ("loading", True)
        assert (worker.state, worker.load().waiting) == (WorkerState.LOADING, 0)
        gate.open()
        await until(lambda: worker.state is WorkerState.READY)


async def test_when_it_will_be_there_is_judged_by_what_its_engine_tells(gate, monkeypatch):
    async with running(gate) as worker, anyio.create_task_group() as tasks:
        tasks.start_soon(worker.wake)
        await until(lambda: gate.loads == 1)
        (engine,) = gate.engines
        engine.progress("reading weights", 0.25)
        assert worker.progress == LoadProgress("reading weights", 0.25)
        now = worker._loading._clock() + 10
        monkeypatch.setattr(worker._loading, "_clock", lambda: now)
        assert worker.back_in_s == pytest.approx(30, abs=1)
        gate.open()
    assert worker.progress == LoadProgress()


async def test_it_is_unloaded_after_idle_time_and_loaded_again(gate):
    gate.open()
    async with running(gate, idle_unload_s=0.05) as worker:
        for loads in (1, 2):
            await worker.wake()
            assert await answer(worker)
            assert gate.loads == loads
            await until(lambda: worker.state is WorkerState.UNLOADED)


async def test_work_keeps_it_loaded(gate):
    gate.open()
    async with running(gate, idle_unload_s=0.05, options={"loop": True, "delay_ms": 1}) as worker:
        await worker.wake()
        sink = Remembering()
        handle = worker.start(a_request(max_tokens=10_000), sink)
        await sink.has(150)  # tokens: three times the idle time
        assert worker.state is WorkerState.READY
        handle.abort()
        await until(lambda: worker.state is WorkerState.UNLOADED)


async def test_what_is_unloaded_is_not_in_memory(gate):
    gate.open()
    async with running(gate) as worker:
        await worker.wake()
        await the_thread_that_made_it_lets_go()
        assert await answer(worker)
        assert len(gate.engines) == 1
        await worker.unload()
        assert worker.state is WorkerState.UNLOADED
        await until(lambda: gate.engines == [])


async def test_unloading_lets_accepted_work_finish_and_who_comes_meanwhile_waits_for_the_next_engine(gate):
    gate.open()
    async with running(gate, options={"delay_ms": 2}) as worker, anyio.create_task_group() as tasks:
        await worker.wake()
        sink = Remembering()
        worker.start(a_request("one two three four five six seven eight"), sink)
        await sink.has(1)
        tasks.start_soon(worker.unload)
        await until(lambda: worker.state is WorkerState.DRAINING)
        assert worker.wakes
        await worker.wake()
        assert sink.ends == [None]
        assert (gate.loads, worker.state) == (2, WorkerState.READY)


async def test_a_load_that_fails_is_told_to_all_that_wait_and_leaves_nothing(gate, monkeypatch, caplog):
    monkeypatch.setattr(on_demand, "REST_S", (0.02, 0.04))
    caplog.set_level(logging.CRITICAL)  # what is logged holds what it is about
    gate.failure = "no such weights"
    async with running(gate) as worker:
        errors: list[Unavailable] = []

        async def wait() -> None:
            with pytest.raises(Unavailable) as refused:
                await worker.wake()
            errors.append(refused.value)

        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(wait)
            await until(lambda: worker.load().waiting == 2 and gate.loads == 1)
            await the_thread_that_made_it_lets_go()
            gate.open()
        assert ["no such weights" in str(error) for error in errors] == [False, False]
        assert "no such weights" in worker.reason
        await until(lambda: worker.state is WorkerState.UNLOADED)
        assert gate.engines == []
        gate.failure = ""
        await worker.wake()
        assert (gate.loads, worker.state, worker.reason) == (2, WorkerState.READY, "")


async def test_while_it_rests_from_a_failure_nobody_waits(gate, caplog):
    caplog.set_level(logging.CRITICAL)
    gate.failure = "no such weights"
    gate.open()
    async with running(gate) as worker:
        for _ in range(2):
            with pytest.raises(Unavailable):
                await worker.wake()
        assert (gate.loads, worker.state, worker.wakes) == (1, WorkerState.FAILED, False)
        assert worker.back_in_s >= 1


async def test_loading_that_is_not_wanted_any_more_is_given_up(gate):
    async with running(gate) as worker, anyio.create_task_group() as tasks:

        async def wait() -> None:
            with pytest.raises(Unavailable):
                await worker.wake()

        tasks.start_soon(wait)
        await until(lambda: gate.loads == 1)
        await worker.unload()


@pytest.mark.parametrize("end", ["stop", "refuse"])
async def test_whoever_waits_is_told_when_the_process_ends(gate, end):
    async with running(gate) as worker, anyio.create_task_group() as tasks:
        refused: list[bool] = []

        async def wait() -> None:
            with pytest.raises(Unavailable):
                await worker.wake()
            refused.append(True)

        tasks.start_soon(wait)
        await until(lambda: gate.loads == 1)
        getattr(worker, end)()
        await until(lambda: refused == [True])
        assert not worker.wakes
    assert worker.state is WorkerState.STOPPED


async def test_one_that_is_loaded_at_the_start_is_ready_when_it_has_started(gate):
    gate.open()
    async with running(gate, load="start", idle_unload_s=0.05) as worker:
        assert worker.state is WorkerState.READY
        await until(lambda: worker.state is WorkerState.UNLOADED)
        await worker.wake()
        assert gate.loads == 2


async def test_one_that_cannot_be_loaded_at_the_start_says_why(gate):
    gate.failure = "no such weights"
    gate.open()
    config = Config(worker=(Worker(backend="gated", names=("m",), idle_unload_s=60.0),))
    worker = make_worker(config, 0, gate.plugins, lambda stage, fraction=None: None)
    async with anyio.create_task_group() as tasks:
        with pytest.raises(OSError, match="no such weights"):
            await tasks.start(worker.run)


async def test_one_that_breaks_for_good_is_loaded_anew_later(gate, monkeypatch, no_restarts):
    monkeypatch.setattr(on_demand, "REST_S", (0.02, 0.04))
    gate.open()
    async with running(gate) as worker:
        await worker.wake()
        (engine,) = gate.engines
        engine.die()
        await until(lambda: worker.state is WorkerState.FAILED)
        del engine
        await until(lambda: worker.state is WorkerState.UNLOADED)
        await worker.wake()
        assert await answer(worker)


async def test_one_in_a_process_is_loaded_and_its_process_is_gone_after_idle_time():
    table = Worker(backend="echo", names=("echo",), placement="process", load="first_request", idle_unload_s=0.2)
    make = partial(make_worker, Config(worker=(table,)), 0)
    worker = await anyio.to_thread.run_sync(lambda: make(Plugins(), lambda stage, fraction=None: None))
    assert isinstance(worker, OnDemandWorker)
    children = psutil.Process().children
    before = len(children())
    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(30):
            await tasks.start(worker.run)
            await worker.wake()
            assert len(children()) == before + 1
            assert await answer(worker)
            seen: set[WorkerState] = set()
            worker.on_change = lambda: seen.add(worker.state)
            await until(lambda: worker.state is WorkerState.UNLOADED)
            assert WorkerState.LOST not in seen
            assert len(children()) == before
            await worker.wake()
            assert await answer(worker)
            worker.stop()
