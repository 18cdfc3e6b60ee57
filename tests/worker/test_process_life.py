"""The life of a worker's child where it is least simple: while it loads, is refused, or cannot even be started."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from fastchat_serve.config import Worker as WorkerConfig
from fastchat_serve.controller.dispatcher import Dispatcher
from fastchat_serve.controller.policies import shortest_queue
from fastchat_serve.controller.registry import Registry
from fastchat_serve.errors import Unavailable
from fastchat_serve.worker import process
from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.process import ProcessWorker
from tests.end_to_end.process import install_plugin
from tests.sinks import Remembering, a_request
from tests.worker.every_worker import in_a_process, until

pytestmark = pytest.mark.anyio

GATED = """
import os, subprocess, sys, time
from pathlib import Path
import anyio
from msgspec import Struct
from fastchat_serve import CONTRACT, hookimpl
from fastchat_serve.engines.echo import EchoEngine, EchoOptions

class Gated(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    folder: Path
    blocking: bool = False
    helper: bool = False

@hookimpl
def register_engines(register):
    register("gated", GatedEngine.of, contract=CONTRACT, options=Gated)

class GatedEngine(EchoEngine):
    @classmethod
    def of(cls, setup):
        engine = cls(EchoOptions(loop=True, delay_ms=1))
        engine.gated = setup.options
        return engine

    async def __aenter__(self):
        if self.gated.helper:
            helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False)
            (self.gated.folder / "helper").write_text(str(helper.pid))
        await anyio.to_thread.run_sync(self.wait)
        return await super().__aenter__()

    def wait(self):
        (self.gated.folder / "loading").touch()
        while not (self.gated.folder / "open").exists():
            time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin whose engine loads, in a thread, until there is a file "open"."""
    install_plugin(tmp_path, "gated", GATED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), *sys.path])))


def a_worker(folder: Path, **options: Any) -> ProcessWorker:
    config = WorkerConfig(backend="gated", names=("gated",))
    given = {"folder": str(folder), **options}
    return ProcessWorker(config, given, lambda stage, fraction=None: None, log_level="warning")


@asynccontextmanager
async def running(worker: ProcessWorker) -> AsyncIterator[ProcessWorker]:
    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(30):
            await tasks.start(worker.run)
        try:
            yield worker
        finally:
            worker.stop()


@asynccontextmanager
async def loading(worker: ProcessWorker, folder: Path) -> AsyncIterator[anyio.abc.TaskGroup]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run)
        await until((folder / "loading").exists)
        with anyio.fail_after(8):
            yield tasks
            await until(lambda: worker.state in (WorkerState.STOPPED, WorkerState.FAILED))


async def test_who_stops_while_it_loads_does_not_wait_for_that(tmp_path: Path) -> None:
    worker = a_worker(tmp_path)
    async with loading(worker, tmp_path):
        pid = worker.pid
        worker.stop()
    assert pid is not None
    assert not psutil.pid_exists(pid)
    assert worker.state is WorkerState.STOPPED


async def test_who_is_cancelled_while_it_loads_does_not_wait_for_that(tmp_path: Path) -> None:
    worker = a_worker(tmp_path)
    async with loading(worker, tmp_path) as tasks:
        tasks.cancel_scope.cancel()
        with anyio.move_on_after(5, shield=True) as patience:
            await until(lambda: worker.state is WorkerState.STOPPED)
    assert not patience.cancelled_caught
    assert worker.pid is None


async def test_it_can_be_refused_while_it_is_opened_anew_and_then_stops(tmp_path: Path) -> None:
    (tmp_path / "open").touch()
    worker = a_worker(tmp_path)
    async with running(worker):
        (tmp_path / "open").unlink()
        (tmp_path / "loading").unlink()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        await until((tmp_path / "loading").exists)
        with anyio.fail_after(10):
            await worker.drain()
            (tmp_path / "open").touch()
            await until(lambda: worker.state is WorkerState.DRAINING)
            worker.stop()
            await until(lambda: worker.state is WorkerState.STOPPED)


async def test_a_child_that_dies_is_missed_although_something_it_started_lives(tmp_path: Path) -> None:
    (tmp_path / "open").touch()
    worker = a_worker(tmp_path, helper=True)
    async with running(worker):
        sink = Remembering()
        worker.start(a_request(), sink)
        await sink.has(1)
        first, helper = worker.pid, int((tmp_path / "helper").read_text())
        assert first is not None
        with anyio.fail_after(8):
            os.kill(first, signal.SIGKILL)
            assert getattr((await sink.ended()).error, "code", "") == "worker_lost"
            await until(lambda: worker.pid not in (first, None) and worker.state is WorkerState.READY)
        assert worker.restarts == 1
        await until(lambda: _is_gone(helper))
    await until(lambda: _is_gone(int((tmp_path / "helper").read_text())))


async def test_nothing_is_left_of_a_child_or_of_what_it_started_when_its_parent_dies(tmp_path: Path) -> None:
    (tmp_path / "open").touch()
    script = tmp_path / "parent.py"
    script.write_text(
        "import anyio\n"
        "from pathlib import Path\n"
        "from tests.worker.test_process_life import a_worker, running\n"
        "async def main():\n"
        f"    async with running(a_worker(Path({str(tmp_path)!r}), helper=True)) as worker:\n"
        "        print(worker.pid, flush=True)\n"
        "        await anyio.sleep_forever()\n"
        "anyio.run(main)\n"
    )
    async with await anyio.open_process([sys.executable, str(script)], stderr=None) as parent:
        assert parent.stdout is not None
        with anyio.fail_after(30):
            child = int(await parent.stdout.receive())
        parent.kill()
    helper = int((tmp_path / "helper").read_text())
    await until(lambda: _is_gone(child) and _is_gone(helper))


async def test_a_child_without_a_parent_leaves_quietly() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        done = await anyio.run_process(
            [sys.executable, "-m", process.CHILD, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            check=False,
        )
    assert done.stderr == b""


def _is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


async def test_a_process_that_cannot_be_started_for_now_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = socket.socketpair
    failed: list[int] = []

    def once_without_descriptors() -> tuple[socket.socket, socket.socket]:
        if failed:
            return pairs()
        failed.append(1)
        raise OSError(24, "Too many open files")

    async with in_a_process() as worker:
        monkeypatch.setattr(socket, "socketpair", once_without_descriptors)
        first = worker.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: worker.restarts == 2 and worker.state is WorkerState.READY)


async def test_who_is_sent_away_meanwhile_is_told_when_to_come_back() -> None:
    async with in_a_process() as worker:
        registry = Registry()
        registry.add(worker)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        await until(lambda: worker.state is not WorkerState.READY)
        with pytest.raises(Unavailable) as refusal:
            Dispatcher(registry, shortest_queue).start("echo", a_request(), Remembering())
        assert refusal.value.retry_after_s is not None
        assert 1 <= refusal.value.retry_after_s < process.NO_HOPE_S


async def test_breaches_of_the_contract_are_counted_over_all_children() -> None:
    async with in_a_process(end_without_finish_at=1) as worker:
        sink = Remembering()
        worker.start(a_request(), sink)
        await sink.ended()
        await until(lambda: worker.protocol_errors == 1)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        await until(lambda: worker.restarts == 1 and worker.state is WorkerState.READY)
        assert worker.protocol_errors == 1


async def test_a_signal_to_all_processes_of_a_service_lets_it_drain() -> None:
    async with in_a_process(delay_ms=20) as worker:
        sink = Remembering()
        worker.start(a_request(), sink)
        await sink.has(1)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGTERM)
        await worker.drain()
        assert (sink.text, sink.ends) == ("to be or not", [None])


async def test_who_drains_while_it_is_silent_takes_nothing_when_it_is_heard_again() -> None:
    async with in_a_process() as worker:
        worker.lost()
        worker.refuse()
        worker.found()
        assert worker.state is WorkerState.DRAINING
