"""Workers of all kinds, running, for the tests of what every worker must do."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec

from fastchat_serve.config import Worker as WorkerConfig
from fastchat_serve.engines.echo import EchoEngine, EchoOptions
from fastchat_serve.protocol.link import FromCaller, FromHost
from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.caller import Caller
from fastchat_serve.worker.host import Host
from fastchat_serve.worker.link import Link
from fastchat_serve.worker.local import LocalWorker
from fastchat_serve.worker.process import ProcessWorker
from fastchat_serve.worker.remote import RemoteWorker

__all__ = ["KINDS", "called", "in_a_process", "linked", "local", "until"]


async def until(condition: Callable[[], bool]) -> None:
    """For what nobody announces: bounded, and without a guess at how long it takes."""
    with anyio.fail_after(20):
        while not condition():
            await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def local(*, concurrency: int = 2, queue: int = 8, **options: Any) -> AsyncIterator[LocalWorker]:
    """In this loop."""
    worker = LocalWorker(EchoEngine(EchoOptions(**options)), names=("echo",), concurrency=concurrency, queue=queue)
    async with anyio.create_task_group() as tasks:
        await tasks.start(worker.run)
        try:
            yield worker
        finally:
            worker.stop()


@asynccontextmanager
async def linked(**settings: Any) -> AsyncIterator[RemoteWorker]:
    """At the other end of a link that begins and ends in this loop."""
    async with called(**settings) as (worker, _):
        yield worker


@asynccontextmanager
async def called(**settings: Any) -> AsyncIterator[tuple[RemoteWorker, Caller]]:
    """The same, and who calls it."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    async with local(**settings) as there, anyio.create_task_group() as tasks:
        remote, host = RemoteWorker(there.id, there.names), Host({there.id: there}, tasks)
        caller = Caller([remote])

        def hosting() -> Link[FromHost, FromCaller]:
            return Link(list[FromCaller], host)

        def calling() -> Link[FromCaller, FromHost]:
            return Link(list[FromHost], caller)

        _, host.link = await loop.create_unix_connection(hosting, sock=theirs)
        _, caller.link = await loop.create_unix_connection(calling, sock=ours)
        remote.attach(caller)
        host.keep_announcing()
        await until(lambda: remote.state is WorkerState.READY)
        try:
            yield remote, caller
        finally:
            caller.link.close("the test is over")


@asynccontextmanager
async def in_a_process(*, concurrency: int = 2, queue: int = 8, **options: Any) -> AsyncIterator[ProcessWorker]:
    """In a child of this process."""
    config = WorkerConfig(backend="echo", names=("echo",), concurrency=concurrency, queue=queue)
    typed = msgspec.to_builtins(EchoOptions(**options))
    worker = ProcessWorker(config, typed, lambda stage, fraction=None: None, log_level="warning")
    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(30):
            await tasks.start(worker.run)
        try:
            yield worker
        finally:
            worker.stop()


KINDS = {"local": local, "linked": linked, "process": in_a_process}
