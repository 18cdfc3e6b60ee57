"""A worker in a process of its own: what its crash, its freeze and its end mean to everybody else."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from fastchat_serve.config import Worker as WorkerConfig
from fastchat_serve.errors import EngineError, StartupError, Unavailable
from fastchat_serve.worker import process, restarts
from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.process import ProcessWorker
from fastchat_serve.worker.remote import LOST
from tests.sinks import Remembering, a_request
from tests.worker.every_worker import in_a_process, until

pytestmark = pytest.mark.anyio


def begin(worker: ProcessWorker, **request: Any) -> Remembering:
    sink = Remembering()
    worker.start(a_request(**request), sink)
    return sink


def kill(worker: ProcessWorker, number: signal.Signals) -> int:
    pid = worker.pid
    assert pid is not None
    os.kill(pid, number)
    return pid


@asynccontextmanager
async def loading(worker: ProcessWorker) -> AsyncIterator[ProcessWorker]:
    """Running, whether it can be opened or not."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run)
        try:
            yield worker
        finally:
            worker.stop()


def a_worker(backend: str = "echo", **table: Any) -> ProcessWorker:
    options = table.pop("options", {})
    config = WorkerConfig(backend=backend, names=("echo",), **table)
    return ProcessWorker(config, options, lambda stage, fraction=None: None, log_level="warning")


async def test_a_killed_child_ends_its_streams_with_one_error_and_is_replaced() -> None:
    async with in_a_process(loop=True, delay_ms=1) as worker:
        sinks = [await begin(worker).has(2) for _ in range(2)]
        first = kill(worker, signal.SIGKILL)
        for sink in sinks:
            error = (await sink.ended()).error
            assert isinstance(error, EngineError)
            assert error.code == "worker_lost"
        await until(lambda: worker.state is WorkerState.READY)
        assert worker.pid != first
        assert worker.restarts == 1
        assert (await begin(worker, max_tokens=2).ended()).ends == [None]
        assert [len(sink.ends) for sink in sinks] == [1, 1]


async def test_nobody_is_sent_to_it_while_there_is_no_child() -> None:
    async with in_a_process() as worker:
        kill(worker, signal.SIGKILL)
        await until(lambda: worker.state is not WorkerState.READY)
        with pytest.raises(Unavailable) as refusal:
            begin(worker)
        assert refusal.value.retry_after_s


async def test_a_child_that_breaks_too_often_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "MOST", 1)
    async with in_a_process() as worker:
        kill(worker, signal.SIGKILL)
        await until(lambda: worker.restarts == 1 and worker.state is WorkerState.READY)
        kill(worker, signal.SIGKILL)
        await until(lambda: worker.state is WorkerState.FAILED)
        assert worker.reason == "Its process was ended by SIGKILL."
        assert worker.back_in_s == process.NO_HOPE_S


async def test_an_engine_that_breaks_takes_its_child_along_and_comes_back() -> None:
    async with in_a_process(die_at=3, loop=True) as worker:
        first = worker.pid
        sink = await begin(worker).ended()
        assert isinstance(sink.error, EngineError)
        await until(lambda: worker.pid not in (first, None) and worker.state is WorkerState.READY)


async def test_g5_a_frozen_child_is_out_within_two_seconds_and_back_when_it_wakes() -> None:
    async with in_a_process(loop=True, delay_ms=1) as worker:
        sink = await begin(worker).has(2)
        began = anyio.current_time()
        frozen = kill(worker, signal.SIGSTOP)
        try:
            error = (await sink.ended()).error
            assert isinstance(error, EngineError)
            assert error.code == "worker_lost"
            assert anyio.current_time() - began < 3  # two, and what a busy machine takes
            assert (worker.state, worker.reason) == (WorkerState.LOST, LOST)
            with pytest.raises(Unavailable):
                begin(worker)
        finally:
            os.kill(frozen, signal.SIGCONT)
        seen = len(sink.chunks)
        await until(lambda: worker.state is WorkerState.READY)
        assert (await begin(worker, max_tokens=2).ended()).ends == [None]
        assert (len(sink.chunks), len(sink.ends)) == (seen, 1)
        await until(lambda: worker.queue_length == 0)


async def test_a_child_that_stays_frozen_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "FROZEN_S", 0.5)
    async with in_a_process() as worker:
        first = kill(worker, signal.SIGSTOP)
        await until(lambda: worker.pid not in (first, None) and worker.state is WorkerState.READY)
        assert not psutil.pid_exists(first)


async def test_no_process_is_left_when_it_stops() -> None:
    async with in_a_process(loop=True, delay_ms=1) as worker:
        pid = worker.pid
        await begin(worker).has(1)
    assert pid is not None
    assert not psutil.pid_exists(pid)
    assert worker.pid is None


async def test_an_engine_that_cannot_be_opened_says_why() -> None:
    with pytest.raises(BaseExceptionGroup) as group:
        async with loading(a_worker("nobody-has-this")) as worker:
            await until(lambda: worker.state is WorkerState.FAILED)
    (error,) = group.value.exceptions
    assert isinstance(error, StartupError)
    assert "nobody-has-this" in str(error)


async def test_loading_can_be_given_up() -> None:
    async with loading(a_worker()) as worker:
        await until(lambda: worker.pid is not None)
        pid = worker.pid
        worker.stop()
    assert pid is not None
    assert not psutil.pid_exists(pid)
    assert worker.state is WorkerState.STOPPED


async def test_a_child_leaves_when_its_parent_dies(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import anyio\n"
        "from tests.worker.every_worker import in_a_process\n"
        "async def main():\n"
        "    async with in_a_process() as worker:\n"
        "        print(worker.pid, flush=True)\n"
        "        await anyio.sleep_forever()\n"
        "anyio.run(main)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    async with await anyio.open_process([sys.executable, str(script)], env=environment, stderr=None) as parent:
        assert parent.stdout is not None
        with anyio.fail_after(30):
            pid = int(await parent.stdout.receive())
        parent.kill()
    await until(lambda: not psutil.pid_exists(pid))
