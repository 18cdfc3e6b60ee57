"""Serve an application: the socket, uvicorn, signals, drain.

The socket is bound before any engine is loaded, so that a port in use costs no waiting. The first
SIGTERM or SIGINT drains: no new work, accepted work finishes within ``[server] drain_s``. The second
ends at once, still with an error to every client. The third kills: an engine that cannot be closed
must not keep the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import anyio
import uvicorn
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from fastchat_serve.app import Application
from fastchat_serve.config import Server
from fastchat_serve.connection import Connection, ConnectionLimits
from fastchat_serve.descriptors import room
from fastchat_serve.errors import StartupError
from fastchat_serve.quiet import QuietProcess
from fastchat_serve.tls import serving_context

__all__ = ["HttpServer", "bind", "serve"]

logger = logging.getLogger(__name__)

UNSENT_BYTES = 64 * 1024
"""What the kernel keeps of a stream that its client does not read. By itself it would keep megabytes, unseen by us.
What is on its way to a client that reads does not count."""

DRAIN_LOOK_S = 0.02
"""How often it is looked whether a drain is done."""

LAST_WORDS_S = 1
"""For errors on their way to clients when the server stops at once."""

CHECK_EVERY_TICKS = 5
"""uvicorn's server ticks every 0.1 s; so often the time limits of connections are looked at."""

FULL_TOLD_EVERY_S = 60.0
"""How often at most it is said that there is no room for more connections."""

SAME_SIGNAL_S = 0.5
"""A launcher and the terminal may both pass one Ctrl-C on; signals this close together are one."""


def bind(server: Server) -> socket.socket:
    """A socket bound to ``[server] host`` and ``port``.

    Raises:
        StartupError: The address is taken, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    # asyncio switches off Nagle's delay of tokens only for sockets that say they are TCP.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # connections inherit it
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        bound.bind((server.host, server.port))
    except (OSError, TypeError) as error:  # the latter if no host can have such a name
        bound.close()
        raise _cannot_listen(f"{server.host}:{server.port}", error) from error
    return bound


def _cannot_listen(address: str, error: OSError | TypeError) -> StartupError:
    return StartupError(
        f"server.port: cannot listen on {address}: {getattr(error, 'strerror', error)}. "
        "Is another server running there? Set another port, or 0 for any free one."
    )


class HttpServer:
    """One application behind one bound socket.

    Args:
        limits: What one connection may cost.
        own: Another socket, which leads here if `bound` is shared with other processes.
    """

    def __init__(
        self,
        application: Application,
        bound: socket.socket,
        limits: ConnectionLimits | None = None,
        own: socket.socket | None = None,
    ) -> None:
        self.application, self._bound, self._own = application, bound, own or bound
        config = application.config.server
        tls = serving_context(application.config)
        self._scheme = "http" if tls is None else "https"
        self._drain_s = config.drain_s
        self._links = {} if application.links is None else application.links.paths
        self._limits = limits or ConnectionLimits()
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                application.asgi,
                http=cast(type[asyncio.Protocol], self._connection),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=config.access_log,
                server_header=False,
                proxy_headers=False,  # peers are who the socket says they are
                backlog=room().backlog,
                ssl_context_factory=None if tls is None else lambda config, default: tls,
            ),
            [bound] if own is None else [bound, own],
        )

    def _connection(self, **made_by_uvicorn: Any) -> Connection:
        self._uvicorn.count_arrival()
        application = self.application
        return Connection(
            **made_by_uvicorn,
            limits=self._limits,
            hot=application.hot,
            door=application.door,
            links=self._links,
        )

    @property
    def url(self) -> str:
        host, port = self._bound.getsockname()[:2]
        return f"{self._scheme}://[{host}]:{port}" if ":" in host else f"{self._scheme}://{host}:{port}"

    @property
    def where(self) -> str:
        """For the log."""
        return f"at {self.url}"

    @property
    def started(self) -> bool:
        """All engines are loaded and requests are answered."""
        return self._uvicorn.started

    @property
    def open_connections(self) -> int:
        """Of clients, idle ones included."""
        return len(self._uvicorn.server_state.connections)

    @property
    def open_requests(self) -> int:
        """Requests whose handling has not ended."""
        state = self._uvicorn.server_state
        return len(state.tasks) + sum(cast(Connection, each).hot_requests for each in state.connections)

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Load the engines, and serve until `drain` or `stop`.

        Raises:
            StartupError: An engine could not be loaded, or another server took the port meanwhile.
        """
        with self._bound, self._own:
            async with self.application.asgi.lifespan(), self.application.linked() as start_links:

                def started() -> None:
                    host, port = self._own.getsockname()[:2]
                    start_links(host, port)
                    self.application.listening(port)
                    task_status.started()

                self._uvicorn.on_started = started
                try:
                    await self._uvicorn.serve(sockets=[self._bound])
                finally:
                    self._uvicorn.stop_accepting()

    async def drain(self) -> None:
        """Take no new work, let accepted work finish for at most ``drain_s``, and end `run`.

        Within the same time clients can read what they have not read yet.
        """
        until = anyio.current_time() + self._drain_s
        done = await self.application.drain(self._drain_s)
        while done and self.application.links is not None and self.open_requests:  # whose workers are elsewhere
            await anyio.sleep(DRAIN_LOOK_S)
            if anyio.current_time() >= until:
                self.application.expel()
                done = False
        if not done:
            logger.warning("Work that was not done within %g s was cut off.", self._drain_s)
        if self._uvicorn.should_exit:
            return  # `stop` was called meanwhile
        left_s = math.ceil(until - anyio.current_time())
        self._uvicorn.config.timeout_graceful_shutdown = max(left_s, LAST_WORDS_S)
        self._uvicorn.should_exit = True

    def stop(self) -> None:
        """End everything under way with an error that says so, and end `run`."""
        self.application.expel()
        self._uvicorn.config.timeout_graceful_shutdown = LAST_WORDS_S
        self._uvicorn.force_exit = self._uvicorn.should_exit  # then only those are left that do not read
        self._uvicorn.should_exit = True


async def serve(server: HttpServer | QuietProcess, on_ready: Callable[[], object]) -> None:
    """Serve until a signal says to stop; `on_ready` is called once all engines are loaded.

    Raises:
        StartupError: An engine could not be loaded.
    """
    application = server.application
    async with anyio.create_task_group() as listening:
        await listening.start(_obey_signals, server, listening.cancel_scope)
        async with anyio.create_task_group() as running:
            await running.start(server.run)
            gc.collect()
            gc.freeze()  # what is loaded stays: the collector need not walk through it again and again
            on_ready()
            logger.info("Serving %s %s", _what(application), server.where)
        listening.cancel_scope.cancel()
    logger.info("Stopped.")


def _what(application: Application) -> str:
    """Its models; a process that has none says what it is instead."""
    names = [name for worker in application.workers for name in worker.names]
    config = application.config
    roles = (("controller", config.controller), ("API", config.api))
    return ", ".join(names) or "as " + " and ".join(role for role, table in roles if table is not None)


class _Uvicorn(uvicorn.Server):
    """uvicorn's server, with signals left to us, and no more connections than there are descriptors for.

    Whoever comes when there is no room waits in the kernel's queue until there is: to accept and fail would hurt
    those that are served already, and to accept and close would be a lie about the load.
    """

    on_started: Callable[[], None]

    def __init__(self, config: uvicorn.Config, bound: Sequence[socket.socket]) -> None:
        super().__init__(config)
        self._bound = bound
        self._room = room()
        self.servers = []
        self._arriving = 0  # accepted, and not among the connections yet
        self._told_at = -math.inf

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._accept()
        self.on_started()

    async def on_tick(self, counter: int) -> bool:
        if not self.servers and len(self.server_state.connections) < self._room.connections:
            with contextlib.suppress(OSError, StartupError):  # no descriptor for that either: at the next tick, then
                await self._accept()
        if counter % CHECK_EVERY_TICKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in tuple(self.server_state.connections):
                cast(Connection, connection).check(now)
        return await super().on_tick(counter)

    def count_arrival(self) -> None:
        """Stop to accept if this connection takes the last of the room."""
        loop = asyncio.get_running_loop()
        self._arriving += 1
        loop.call_soon(self._arrived)
        if len(self.server_state.connections) + self._arriving >= self._room.connections and self.servers:
            loop.call_soon(self.stop_accepting)  # the listener is busy with this connection
            if loop.time() - self._told_at >= FULL_TOLD_EVERY_S:
                self._told_at = loop.time()
                logger.warning("No descriptors are left for more connections: newcomers wait.")

    def stop_accepting(self) -> None:
        """Whoever comes waits from now on."""
        for server in self.servers:
            server.close()
        self.servers = []

    def _arrived(self) -> None:
        self._arriving -= 1

    async def _accept(self) -> None:
        """Listen on copies of the sockets: closing them is how to stop, and the originals keep the kernel's queue."""
        copies = [bound.dup() for bound in self._bound]
        try:
            await super().startup(copies)
        except OSError as error:  # two sockets can be bound to one port, but only one of them can listen
            for copy in copies:
                copy.close()
            raise _cannot_listen("the port that was free before loading", error) from error


async def _obey_signals(
    server: HttpServer | QuietProcess,
    everything: anyio.CancelScope,
    *,
    task_status: TaskStatus[None] = TASK_STATUS_IGNORED,
) -> None:
    heard_at: list[float] = []
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async with anyio.create_task_group() as tasks:
            async for number in signals:
                name, now = signal.Signals(number).name, anyio.current_time()
                if not server.started:
                    logger.info("%s while loading: giving up.", name)
                    everything.cancel()
                    continue
                if heard_at and now - heard_at[-1] < SAME_SIGNAL_S:
                    continue
                heard_at.append(now)
                if len(heard_at) == 1:
                    server.application.refuse()  # at once, before anything else is read from a socket
                    why = "An operator drains this process" if server.application.asked_to_drain else name
                    logger.info("%s: finishing accepted work. Once more to stop at once.", why)
                    tasks.start_soon(server.drain)
                elif len(heard_at) == 2:
                    logger.warning("%s: stopping now.", name)
                    server.stop()
                else:
                    signal.signal(number, signal.SIG_DFL)
                    signal.raise_signal(number)
