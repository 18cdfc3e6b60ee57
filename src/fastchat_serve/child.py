"""``python -m fastchat_serve.child FD``: one worker in a process of its own, for `worker/process.py`.

Its end of the link is open at the file descriptor FD. The first message says what to make; from then on the link is
served until it says `Stop`, or closes because the parent has gone. The log goes to the parent's standard error.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from functools import partial
from types import FrameType
from typing import Final

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from fastchat_serve.config import Config, Worker
from fastchat_serve.logs import logging_to
from fastchat_serve.making import make_local_worker
from fastchat_serve.plugins import Plugins
from fastchat_serve.protocol.frames import readable
from fastchat_serve.protocol.link import FromCaller, FromHost, Open, Progress, Refuse, Stop, Unopened
from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.host import Host
from fastchat_serve.worker.link import Link
from fastchat_serve.worker.local import LocalWorker

__all__ = ["Child", "run"]

logger = logging.getLogger(__name__)

LEAVE_S: Final = 20.0
"""An engine that is not closed by then is left to its fate: nobody waits for it any more."""


class Child:
    """The worker, and this end of the link to its parent."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._wanted: Open | None = None
        self._asked = anyio.Event()  # or nobody will
        self._over, self._ended, self._gone = anyio.Event(), anyio.Event(), anyio.Event()
        self.orphaned = False
        """The parent has gone without a word: nobody will look after what the engine has started."""
        self._host: Host | None = None
        self._worker: LocalWorker | None = None
        self._refusing = False

    async def serve(self, end: socket.socket) -> None:
        """Make the worker that the parent asks for, and serve it until the parent has enough."""
        _, self._link = await self._loop.create_unix_connection(self._new_link, sock=end)
        self._tasks.start_soon(self._stop_when_over)
        await self._asked.wait()
        if (wanted := self._wanted) is None:
            return
        logging.getLogger().setLevel(wanted.log_level.upper())
        try:
            worker = await anyio.to_thread.run_sync(self._make, wanted)
            host = self._host_worker(worker, wanted.id)
            await self._tasks.start(self._run, worker)
            host.announce()
        except Exception as error:  # the boundary to foreign code: the parent is told, whatever it was
            if not self._over.is_set():
                logger.debug("The engine could not be opened.", exc_info=True)
                self._link.send(Unopened(f"{type(error).__name__}: {error}"))
            self._over.set()
        await self._over.wait()

    async def _run(self, worker: LocalWorker, *, task_status: TaskStatus[None]) -> None:
        try:
            await worker.run(task_status=task_status)
        finally:
            self._ended.set()

    async def _stop_when_over(self) -> None:
        """End the worker, and then the link, once nobody wants them any more."""
        await self._over.wait()
        last_resort = threading.Timer(LEAVE_S, _leave_by_force)
        last_resort.daemon = True
        last_resort.start()
        worker, host = self._worker, self._host
        if worker is None or host is None or worker.state is WorkerState.LOADING:
            self._link.close("there is no worker")
            self._tasks.cancel_scope.cancel()
            return
        worker.stop()
        await self._ended.wait()
        host.closed("the worker has stopped")
        self._link.close("the worker has stopped")
        await self._gone.wait()

    # ------------------------------------------------------------------------------------ the link's

    def opened(self) -> None:
        """The parent speaks first."""

    def receive(self, messages: Sequence[FromCaller]) -> None:
        for message in messages:
            if isinstance(message, Open):
                self._wanted = message
                self._asked.set()
            elif isinstance(message, Stop):
                self._over.set()
            elif isinstance(message, Refuse):
                self._refusing = True
                if self._worker is not None:
                    self._worker.refuse()
            elif self._host is not None:
                self._host.receive([message])

    def silent(self) -> None:
        """The parent is frozen; it wakes, or dies, and then the link closes."""

    def heard(self) -> None:
        """It has woken."""

    def closed(self, reason: str) -> None:
        self.orphaned = not self._over.is_set()
        self._over.set()
        self._gone.set()
        self._asked.set()
        if self._host is not None:
            self._host.closed(reason)

    # -------------------------------------------------------------------------------------------------

    def _new_link(self) -> Link[FromHost, FromCaller]:
        return Link(list[FromCaller], self)

    def _host_worker(self, worker: LocalWorker, id_: str) -> Host:
        """Have `worker` called through the link, by this id."""
        worker.id = id_
        self._worker, self._host = worker, (host := Host({id_: worker}, self._tasks))
        host.link = self._link
        if self._refusing:
            worker.refuse()
        host.keep_announcing()
        return host

    def _make(self, wanted: Open) -> LocalWorker:
        config = Config(worker=(msgspec.convert(wanted.worker, Worker),), plugins=wanted.plugins)
        plugins = Plugins()
        plugins.load(config.plugins)
        return make_local_worker(config, 0, plugins, self._report, restarts=False)

    def _report(self, stage: str, fraction: float | None = None) -> None:
        """A `hookspecs.Progress`, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._link.send, readable(Progress(stage, fraction)))
        except RuntimeError:
            logger.debug("the event loop is closed; nobody is left to tell")


def _leave_to_parent(*signals: signal.Signals) -> None:
    """Ignore what a service manager sends to all processes of a service: ours drains first, and then ends us.

    What the engine starts does not: a handler is gone in another program, and in a fork of this one it steps back.
    """
    ours = os.getpid()

    def ignore(number: int, frame: FrameType | None) -> None:
        if os.getpid() != ours:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for each in signals:
        signal.signal(each, ignore)


def _leave_by_force() -> None:
    """With all that the engine has started, if that is in a group of its own with us."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


async def run(fd: int) -> bool:
    """Serve the link at `fd` until it closes. Returns whether the parent has gone."""
    end = socket.socket(fileno=fd)
    end.setblocking(False)
    end.set_inheritable(False)
    async with anyio.create_task_group() as tasks:
        child = Child(tasks)
        await child.serve(end)
    return child.orphaned


if __name__ == "__main__":
    _leave_to_parent(signal.SIGTERM, signal.SIGINT)
    with logging_to(os.dup(2), "info"):
        orphaned = anyio.run(partial(run, int(sys.argv[1])), backend_options={"use_uvloop": sys.platform != "win32"})
    if orphaned:
        _leave_by_force()
