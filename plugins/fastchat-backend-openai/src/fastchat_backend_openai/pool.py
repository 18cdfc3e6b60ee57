"""The connections to the upstream: kept, bounded, and given to requests in the order in which they came."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from fastchat_backend_openai.connect import Connector
from fastchat_backend_openai.connection import Connection, Head, Receiver, unreachable
from fastchat_serve import DeadlineExceeded, EngineError, ServeError

__all__ = ["Call", "Pool"]

KEEP_S = 30.0
"""Idle connections that are older are not used again: what lies between may have forgotten them."""
FAREWELL_S = 2.0
"""How long a reply that told all there is to know may take to end, so that its connection can be kept."""

_CLOSE_S = 1.0
"""How long closing waits for the last connection."""


class Call:
    """One request, from its place in the queue to the end of its reply. `receiver` hears of it."""

    def __init__(self, pool: Pool, request: bytes, receiver: Receiver) -> None:
        self.request = request
        self._pool, self._receiver = pool, receiver
        self._connection: Connection | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._over = False

    def begin(self, connection: Connection) -> None:
        self._connection = connection
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._pool.read_timeout_s, self._check, loop)
        connection.send(self.request, self)

    def abort(self) -> None:
        """Stop it; the receiver hears no more. Idempotent."""
        if not self._over:
            self._finish()
            if self._connection is None:
                self._pool.forget(self)
            else:
                self._connection.abort()

    def leave(self) -> None:
        """The receiver has heard enough: what is still to come only frees the connection."""
        if not self._over and self._connection is not None:
            self._receiver = _NOBODY
            self._rearm(FAREWELL_S)

    def fail(self, error: ServeError) -> None:
        """There is no connection for it."""
        if not self._over:
            self._finish()
            self._receiver.on_lost(error)

    # ---------------------------------------------------------------------------- the connection's side

    def on_head(self, head: Head) -> None:
        self._receiver.on_head(head)

    def on_data(self, data: bytes) -> None:
        self._receiver.on_data(data)

    def on_end(self) -> None:
        if not self._over:
            self._finish()
            self._receiver.on_end()

    def on_lost(self, error: ServeError) -> None:
        connection, self._connection = self._connection, None
        if self._over or connection is None:
            return
        if connection.exchanges > 1 and connection.silent:  # it was closed before our request came
            if self._timer is not None:
                self._timer.cancel()
            self._pool.again(self)
            return
        self.fail(error)

    # ------------------------------------------------------------------------------------------------

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        """Armed once, not for every piece that comes."""
        connection = self._connection
        if self._over or connection is None:
            return
        silence = loop.time() - connection.heard
        if self._receiver is not _NOBODY and silence < self._pool.read_timeout_s:
            self._rearm(self._pool.read_timeout_s - silence)
            return
        receiver = self._receiver
        self.abort()
        receiver.on_lost(DeadlineExceeded("The upstream has been silent for too long."))

    def _rearm(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(delay_s, self._check, loop)

    def _finish(self) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()


class Pool:
    """At most `max_connections`, opened as they are needed. To be closed at the end."""

    def __init__(self, connect: Connector, *, max_connections: int, read_timeout_s: float) -> None:
        self.read_timeout_s = read_timeout_s
        self._connect, self._max = connect, max_connections
        self._idle: list[Connection] = []  # the latest last: that is used first, and the others grow old
        self._open: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: deque[Call] = deque()
        self._closed = False
        self._all_closed = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Requests without a connection."""
        return len(self._waiting)

    def submit(self, request: bytes, receiver: Receiver) -> Call:
        """Send `request`, head and body, as soon as there is a connection. All else arrives at `receiver`."""
        call = Call(self, request, receiver)
        self._waiting.append(call)
        self._serve()
        return call

    def again(self, call: Call) -> None:
        """Put a call back, as the first."""
        if self._closed:
            call.fail(EngineError("The engine was closed."))
            return
        self._waiting.appendleft(call)
        self._serve()

    def forget(self, call: Call) -> None:
        """A call that was waiting was given up."""
        if call in self._waiting:
            self._waiting.remove(call)

    async def close(self) -> None:
        """Close everything; calls under way fail."""
        self._closed = True
        if not self._open:
            self._all_closed.set()
        while self._waiting:
            self._waiting.popleft().fail(EngineError("The engine was closed."))
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for connection in tuple(self._open):
            connection.lose(EngineError("The engine was closed."))
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._all_closed.wait()

    def _serve(self) -> None:
        while self._waiting and (connection := self._take_idle()) is not None:
            self._waiting.popleft().begin(connection)
        loop = asyncio.get_running_loop()
        while len(self._opening) < len(self._waiting) and len(self._open) + len(self._opening) < self._max:
            task = loop.create_task(self._open_one())
            self._opening.add(task)
            task.add_done_callback(self._on_opened)

    def _take_idle(self) -> Connection | None:
        oldest_use = asyncio.get_running_loop().time() - KEEP_S
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.heard > oldest_use:
                return connection
            connection.abort()
        return None

    async def _open_one(self) -> None:
        try:
            connection = await self._connect(lambda: Connection(self._on_idle, self._on_closed))
        except ServeError as error:
            self._fail_next(error)
            return
        if self._closed:
            connection.abort()
            return
        if not connection.usable:  # it has ended already: nobody would ever take it out of `_open`
            self._fail_next(unreachable("closed the connection at once"))
            return
        self._open.add(connection)
        if self._waiting:
            self._waiting.popleft().begin(connection)
        else:  # whoever wanted it has left
            self._on_idle(connection)

    def _fail_next(self, error: ServeError) -> None:
        if self._waiting:
            self._waiting.popleft().fail(error)

    def _on_opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        if not self._closed:
            self._serve()  # one that could not be opened leaves the turn to the next

    def _on_idle(self, connection: Connection) -> None:
        self._idle.append(connection)
        self._serve()

    def _on_closed(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if not self._closed:
            self._serve()
        elif not self._open:
            self._all_closed.set()


class _Nobody:
    """Hears the rest of a reply that is of no interest."""

    def on_head(self, head: Head) -> None: ...
    def on_data(self, data: bytes) -> None: ...
    def on_end(self) -> None: ...
    def on_lost(self, error: ServeError) -> None: ...


_NOBODY = _Nobody()
