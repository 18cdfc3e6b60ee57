"""A worker in a process of its own: the child is started, watched, started anew if it breaks, and taken along.

To everybody else it is a `RemoteWorker`, over a link on a socket pair, so it listens on nothing. The child
(`fastchat_serve.child`) runs one local worker. However a child ends, by a crash of its engine or by a signal, its
streams end with an error, and another child takes its place as `Restarts` allows. If this process dies, the child sees
its end of the link close, and leaves.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import anyio
import anyio.abc
import msgspec
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from fastchat_serve.config import Worker
from fastchat_serve.errors import StartupError, Unavailable
from fastchat_serve.hookspecs import Progress
from fastchat_serve.protocol.frames import LinkBroken
from fastchat_serve.protocol.link import FromCaller, FromHost, Open, Refuse, Statement, Stop, Unopened
from fastchat_serve.protocol.link import Progress as ProgressMade
from fastchat_serve.worker.base import LoadProgress, WorkerState
from fastchat_serve.worker.caller import Caller, lost_error
from fastchat_serve.worker.link import Link
from fastchat_serve.worker.loading import Loading
from fastchat_serve.worker.remote import LOST, RemoteWorker
from fastchat_serve.worker.restarts import Restarts
from fastchat_serve.worker.watched import new_id

__all__ = ["CHILD", "ProcessWorker"]

logger = logging.getLogger(__name__)

CHILD: Final = "fastchat_serve.child"
"""The module that the child runs, with the number of its end of the link as its argument."""

STOP_S = 15.0
"""How long a child may take to close its engine; then it is killed."""

GIVE_UP_S = 1.0
"""The same for one whose engine is not open yet: nothing is lost with it."""

KILL_S = 5.0
"""After this long a killed process is not waited for any more: a driver may keep it."""

FROZEN_S = 60.0
"""A child that is silent for this long is killed, and started anew."""

NO_HOPE_S = 60.0
"""When to ask again for a model whose worker failed for good."""


class ProcessWorker(RemoteWorker):
    """See the module. ``await tasks.start(worker.run)`` starts the child; `stop` ends `run`.

    Args:
        worker: The table ``[[worker]]``.
        options: Its options, checked and complete.
        plugins: To be loaded in the child.
        log_level: Of the child, whose log is our standard error as well.
    """

    def __init__(
        self,
        worker: Worker,
        options: Mapping[str, Any],
        progress: Progress,
        *,
        plugins: tuple[str, ...] = (),
        log_level: str = "info",
    ) -> None:
        super().__init__(
            new_id(worker.names[0]),
            worker.names,
            speed=worker.speed,
            slots=worker.concurrency,
            queue_limit=worker.queue,
        )
        table = {**msgspec.to_builtins(worker), "options": options}
        self._table, self._plugins, self._log_level = table, plugins, log_level
        self._loading = Loading(progress)
        self._attempts = Restarts(time.monotonic)
        self._refusing = self._stopping = False
        self._over = anyio.Event()  # of this child's life
        self._opened = anyio.Event()  # or it never will be
        self._problem = ""
        self._past_errors = 0  # `protocol_errors` of earlier children
        self._process: anyio.abc.Process | None = None
        self._link: Link[FromCaller, FromHost] | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def back_in_s(self) -> float:
        return self._loading.left_s if self.state is WorkerState.LOADING else self._back_in_s

    @property
    def progress(self) -> LoadProgress:
        return self._loading.progress

    # ---------------------------------------------------------------------------------- life cycle

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Keep a child until `stop`. Started once it can serve.

        Raises:
            StartupError: The first child's engine could not be opened.
        """
        try:
            await self._live(task_status)
            while self._may_restart():
                logger.warning("Worker %s: starting its process anew.", self.id)
                self.restarts = self._attempts.count
                await self._live()
        finally:
            if self.state is not WorkerState.FAILED:
                self.state = WorkerState.STOPPED

    def stop(self) -> None:
        """End `run`. What is still under way is told so: `drain` before."""
        self._stopping = True
        if self.state is WorkerState.READY:
            self.state = WorkerState.DRAINING
        self._over.set()
        self._opened.set()

    def refuse(self) -> None:
        """Take no new work."""
        self._refusing = True
        self._before = WorkerState.DRAINING
        if self.state is WorkerState.READY:
            self.state = WorkerState.DRAINING
        if self._link is not None:
            self._link.send(Refuse())

    async def drain(self) -> None:
        """Take no new work, and return when all accepted work is done. The caller bounds the wait."""
        self.refuse()
        await self.wait_idle()

    # ------------------------------------------------------------------------------- the caller's side

    def _take(self, message: FromHost) -> None:
        """What a host says only to its parent."""
        if isinstance(message, ProgressMade):
            self._loading(message.stage, message.fraction)
        elif isinstance(message, Unopened):
            self._problem = message.problem
        else:
            raise LinkBroken(f"nothing can be done here with a message {type(message).__name__}")

    @property
    def _is_ending(self) -> bool:
        return self._stopping

    def lost(self) -> None:
        if self.state in (WorkerState.READY, WorkerState.DRAINING):
            logger.warning("Worker %s: %s", self.id, LOST)
        super().lost()

    def found(self) -> None:
        if self.state is WorkerState.LOST:
            logger.warning("Worker %s is there again.", self.id)
        super().found()

    def detached(self) -> None:
        super().detached()
        self._over.set()
        self._opened.set()

    def stated(self, said: Statement) -> None:
        super().stated(said)
        self.restarts = self._attempts.count
        self.protocol_errors += self._past_errors
        if self.state in (WorkerState.READY, WorkerState.DRAINING):
            self._loading.end(done=True)
            self._opened.set()
            if self._refusing or self._stopping:
                self.state = WorkerState.DRAINING
        elif self.state is WorkerState.FAILED:  # what broke in there is not mended in there
            self._back_in_s = 1.0
            self._over.set()

    # -------------------------------------------------------------------------------------------------

    async def _live(self, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """One child's life: from its start until `stop`, or until it breaks."""
        self._over, self._opened = anyio.Event(), anyio.Event()
        self._problem, self._past_errors = "", self.protocol_errors
        if self._stopping:
            return
        self._loading.begin()
        self.state, self.reason, self._back_in_s = WorkerState.LOADING, "", 1.0
        opened, process = False, None
        try:
            async with self._child() as process:
                opened = await self._watch(process, task_status)
        except OSError as error:  # no descriptor or no memory for it, for now
            self._problem = f"Its process could not be started: {error.strerror}."
        if self._stopping:
            return
        broke = self.reason if self.state is WorkerState.FAILED else ""
        how = self._problem or broke or _how_it_ended(process.returncode if process is not None else None)
        self.state, self.reason = WorkerState.FAILED, how
        logger.error("Worker %s failed: %s", self.id, how)
        if not opened and not self._attempts.count:
            raise StartupError(f"worker {self.names[0]!r} could not be opened in its process: {how}")

    async def _watch(self, process: anyio.abc.Process, task_status: TaskStatus[None]) -> bool:
        """Return when the child's life is over, or when it has been frozen for too long. Whether it was opened."""
        opened, silent_s = False, 0.0
        # The end of the process is looked for, too: what it has started may hold its end of the link open.
        while not self._over.is_set() and process.returncode is None:
            with anyio.move_on_after(_WATCH_S):
                await (self._over if opened else self._opened).wait()
            if not opened and self._opened.is_set() and not self._over.is_set():
                opened = True
                task_status.started()
            silent_s = silent_s + _WATCH_S if self.state is WorkerState.LOST else 0.0
            if silent_s >= FROZEN_S:
                self._problem = f"Its process was silent for {FROZEN_S:g} s."
                break
        return opened

    @asynccontextmanager
    async def _child(self) -> AsyncIterator[anyio.abc.Process]:
        """A child, and the link to it. When left, neither is there any more."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await anyio.open_process(
                    [sys.executable, *_as_isolated_as_we_are(), "-m", CHILD, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=None,
                    stderr=None,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # a terminal's Ctrl-C is for us, and what it starts is found again
                )
            except BaseException:
                ours.close()
                raise
        self._process = process
        try:
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            caller = Caller([self], other=self._take)
            _, caller.link = await loop.create_unix_connection(lambda: Link(list[FromHost], caller), sock=ours)
            self.attach(caller)
            link = self._link = caller.link
            link.send(Open(self.id, self._table, self._plugins, self._log_level))
            if self._refusing:
                link.send(Refuse())
            try:
                yield process
            finally:
                leaving = Unavailable("This worker is shutting down.", retry_after_s=1.0)
                self.expel(leaving if self._stopping else lost_error())
                await self._end(process, link)
        finally:
            self._process = None
            _kill(process)
            with anyio.move_on_after(KILL_S, shield=True):
                await process.wait()

    async def _end(self, process: anyio.abc.Process, link: Link[FromCaller, FromHost]) -> None:
        """Have it close its engine; whoever is frozen, or takes too long, does not get to."""
        frozen = link.open and self.state is WorkerState.LOST
        patience_s = 0 if frozen else GIVE_UP_S if self.state is WorkerState.LOADING else STOP_S
        with anyio.move_on_after(patience_s, shield=True):
            link.send(Stop())
            await process.wait()
        link.abort("its process is ended")

    def _may_restart(self) -> bool:
        if self.state is not WorkerState.FAILED or self._refusing or self._stopping:
            return False
        if self._attempts.allow():
            return True
        self._back_in_s = NO_HOPE_S
        logger.error("Worker %s stays out of service: its process was started anew too often.", self.id)
        return False


_WATCH_S = 0.5


def _as_isolated_as_we_are() -> tuple[str, ...]:
    """``-m`` looks for modules in the working directory first. Any file may lie there, so not if we do not."""
    main = sys.modules["__main__"]
    return () if main.__spec__ is not None and not sys.flags.safe_path else ("-P",)


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "Its process could not be ended."
    if code < 0:
        known = {each.value: each.name for each in signal.Signals}  # those of real time have no names
        return f"Its process was ended by {known.get(-code, f'signal {-code}')}."
    return f"Its process ended with exit code {code}."


def _kill(process: anyio.abc.Process) -> None:
    """With everything that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
