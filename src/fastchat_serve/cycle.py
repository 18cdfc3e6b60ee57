"""One request on a connection, and its reply.

A reply is written by plain calls, `begin` and `write`, from wherever a piece of it comes to be: an engine's
step writes each token without a task that wakes for it. Pieces are framed here, once, and each is one write to
the transport; while the socket is behind they pile up, and leave as one.

There are two kinds. A `HotCycle` hands a generation request to its handler as soon as the body is there. For
everything else an `AppCycle` runs the ASGI application in a task of its own.
"""

from __future__ import annotations

import asyncio
import http
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from litestar.types import ASGIApp, Message, Scope
from msgspec import Struct

from fastchat_serve.errors import ServeError
from fastchat_serve.routes.door import Door
from fastchat_serve.routes.errors import UNEXPECTED, error_body, reply_error
from fastchat_serve.routes.exchange import JSON_CONTENT, Exchange, Header, request_id, require_json, too_large
from fastchat_serve.routes.hot import End, HotRoute

__all__ = ["AppCycle", "Cycle", "Head", "HotCycle", "Link"]

logger = logging.getLogger(__name__)

READ_AHEAD_BYTES = 256 * 1024
"""Of a body that nobody reads; then the socket is not read either."""

_STATUS_LINES: Mapping[int, bytes] = MappingProxyType(
    {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in http.HTTPStatus}
)
_BODILESS = frozenset({204, 304})
_SMALL = 1024
_SIZE_LINES = tuple(b"%x\r\n" % size for size in range(_SMALL))
"""What stands before a chunk; to format it costs more than all the rest of the framing."""


Spawn = Callable[[Coroutine[Any, Any, None]], None]


class Link(Protocol):
    """What a cycle needs of its connection."""

    transport: asyncio.Transport
    writing_paused: bool
    """The socket is behind: a piece that is written now would only be kept in memory."""
    client: tuple[str, int] | None

    @property
    def common_headers(self) -> list[Header]:
        """On every reply."""
        ...

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def call_soon(self, callback: End) -> None: ...
    def completed(self, cycle: Cycle) -> None:
        """The reply is written."""


class Head(Struct, frozen=True, gc=False):
    """What came before a request's body."""

    method: str
    url: bytes
    headers: list[Header]
    """Names in lower case."""
    keep_alive: bool
    """The client may send another request afterwards."""
    http_1_0: bool
    """The client cannot read a chunked body; its end is the connection's."""
    expects_continue: bool
    """The client waits for "100 Continue" before it sends the body."""


class Cycle(ABC):
    """What both kinds share: the reply. It is an `Outlet` of `routes/exchange.py`."""

    __slots__ = (
        "_backlog_bytes",
        "_chunked",
        "_continued",
        "_head",
        "_last",
        "_link",
        "_parts",
        "_pending",
        "_unread_bytes",
        "complete",
        "disconnected",
        "head",
        "keep_alive",
        "more_body",
        "status",
    )

    def __init__(self, link: Link, head: Head) -> None:
        self._link, self.head = link, head
        self._continued = False
        self.keep_alive = head.keep_alive
        self.disconnected = False
        """The client has gone."""
        # The request's body.
        self._parts: list[bytes] = []
        self._unread_bytes = 0
        self.more_body = True
        """Of the request, some is still to come."""
        # The reply.
        self._chunked = self._last = False
        self._head = b""
        self._pending: list[bytes] = []
        self._backlog_bytes = 0
        self.status = 0
        """Of the reply, once it has one."""
        self.complete = False
        """All of the reply was handed to the transport."""

    @abstractmethod
    def open(self) -> None:
        """Begin: the requests before it on the same connection have their replies."""

    @abstractmethod
    def ended(self) -> None:
        """The reply is complete, or the client has gone."""

    # --------------------------------------------------------------------------- what comes from the client

    def feed(self, body: bytes) -> None:
        """More of the request's body."""
        self._parts.append(body)
        self._unread_bytes += len(body)

    def end_of_body(self) -> None:
        self.more_body = False

    def disconnect(self) -> None:
        """The client has gone."""
        self.disconnected = True
        self.drop_backlog()
        self.ended()

    def _say_continue(self) -> None:
        wanted = self.head.expects_continue and self.more_body
        if wanted and not (self._continued or self.status or self.disconnected):
            self._continued = True
            self._link.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # ----------------------------------------------------------------------------- what goes to the client

    def begin(self, status: int, headers: Iterable[Header]) -> None:
        """Set status and headers. They leave with the first piece of the body, as ASGI has it."""
        length = closes = False
        lines = [_STATUS_LINES[status]]
        for name, value in (*self._link.common_headers, *headers):
            lines.append(name + b": " + value)
            length = length or name == b"content-length"
            closes = closes or (name == b"connection" and value == b"close")
        has_body = self.head.method != "HEAD" and status not in _BODILESS
        self._chunked = has_body and not length and not self.head.http_1_0
        if self._chunked:
            lines.append(b"transfer-encoding: chunked")
        # Who is still sending cannot be sure of the next request's place on the line.
        if closes or self.more_body or (has_body and not length and not self._chunked):
            self.keep_alive = False
        if not self.keep_alive and not closes:
            lines.append(b"connection: close")
        self._head = b"\r\n".join([*lines, b"", b""])
        if self._head.count(b"\n") != len(lines) + 1 or self._head.count(b"\r") != len(lines) + 1:
            raise ValueError("a header's value holds a line break")
        self.status = status

    def write(self, body: bytes, *, last: bool = False) -> int:
        """A piece of the body. Never waits. Returns how many bytes have piled up."""
        if self._last or self.disconnected:
            return 0
        self._last = last
        if self._link.writing_paused:
            self._pending.append(body)
            self._backlog_bytes += len(body)
            return self._backlog_bytes
        self._write(body)
        return 0

    def drop_backlog(self) -> None:
        """Forget what piled up."""
        self._pending.clear()
        self._backlog_bytes = 0

    def flush(self) -> None:
        """The socket is free again: what piled up leaves as one piece."""
        if self._pending:
            body = b"".join(self._pending)
            self.drop_backlog()
            self._write(body)

    def _write(self, body: bytes) -> None:
        if self._chunked:
            if body:
                size = len(body)
                body = (_SIZE_LINES[size] if size < _SMALL else b"%x\r\n" % size) + body + b"\r\n"
            if self._last:
                body += b"0\r\n\r\n"
        elif self.head.method == "HEAD":
            body = b""
        if self._head:
            body = self._head + body
            self._head = b""
        self._link.transport.write(body)
        if self._last:
            self.complete = True
            self.ended()
            self._link.completed(self)

    def _settle(self) -> None:
        """The one who should have replied failed, or did not: leave no client without an answer."""
        if self.complete or self.disconnected or self._last:
            return
        if self.status and not self._head:
            self._link.transport.abort()  # half a reply must not look like a whole one
        else:
            body = error_body(UNEXPECTED)
            self.begin(UNEXPECTED.status, [JSON_CONTENT, (b"content-length", str(len(body)).encode())])
            self.write(body, last=True)


class HotCycle(Cycle):
    """A generation request: no task, and nothing of ASGI.

    Args:
        route: Whose handler answers.
        door: Says who may come in.
    """

    __slots__ = ("_door", "_end", "_exchange", "_route")

    def __init__(self, link: Link, head: Head, route: HotRoute, door: Door) -> None:
        super().__init__(link, head)
        self._route, self._door = route, door
        self._exchange: Exchange | None = None  # from `open` to the end
        self._end: End | None = None

    def open(self) -> None:
        if not self.disconnected:
            headers = self.head.headers
            self._exchange = Exchange(headers, request_id(headers), "", self, self._door.page_headers(headers))
            self._attempt(self._admit)

    def feed(self, body: bytes) -> None:
        super().feed(body)
        if self._exchange is None:
            if self._unread_bytes > READ_AHEAD_BYTES:
                self._link.pause_reading()
        elif self._unread_bytes > self._route.limit_bytes:
            self._parts.clear()
            self._link.call_soon(self._proceed)  # not from within the parser

    def end_of_body(self) -> None:
        super().end_of_body()
        if self._exchange is not None:
            self._link.call_soon(self._proceed)

    def ended(self) -> None:
        end, self._end = self._end, None
        self._exchange = None  # it holds us
        if end is not None:
            end()

    def _proceed(self) -> None:
        """There is news of the body."""
        if self._exchange is not None and not self.status:
            self._attempt(self._begin_reply)

    def _attempt(self, step: Callable[[Exchange], None]) -> None:
        """Whatever comes of `step`, the client gets a reply."""
        exchange = self._exchange
        assert exchange is not None
        try:
            step(exchange)
        except ServeError as error:
            reply_error(exchange, error)
        except Exception:
            logger.exception("Request %s failed unexpectedly.", exchange.id)
            self._settle()

    def _admit(self, exchange: Exchange) -> None:
        exchange.tenant = self._door.admit(exchange.headers, self._link.client)
        require_json(exchange.headers, self._route.limit_bytes)
        self._link.resume_reading()  # to hear when the client leaves, if for nothing else
        if self.more_body and self._unread_bytes <= self._route.limit_bytes:
            self._say_continue()
        else:
            self._begin_reply(exchange)

    def _begin_reply(self, exchange: Exchange) -> None:
        if self._unread_bytes > self._route.limit_bytes:
            raise too_large(self._route.limit_bytes)
        parts, self._parts = self._parts, []
        end = self._route.begin(exchange, parts[0] if len(parts) == 1 else b"".join(parts))
        if self.complete or self.disconnected:
            end()
        else:
            self._end = end


class AppCycle(Cycle):
    """Any other request: a task for the ASGI application.

    Args:
        app: The application.
        scope: ASGI's description of the request.
        spawn: Starts the task.
    """

    __slots__ = ("_app", "_flushed", "_news", "_scope", "_spawn")

    def __init__(self, link: Link, head: Head, app: ASGIApp, scope: Scope, spawn: Spawn) -> None:
        super().__init__(link, head)
        self._app, self._scope, self._spawn = app, scope, spawn
        self._news = asyncio.Event()
        self._flushed = asyncio.Event()

    def open(self) -> None:
        if not self.disconnected:
            self._spawn(self._run())

    async def _run(self) -> None:
        """Have the application answer. Whatever it does, the client gets a reply or a closed connection."""
        try:
            await self._app(self._scope, self.receive, self.send)  # type: ignore[arg-type]
        except Exception:
            logger.exception("A request failed outside of the application's own error handling.")
        finally:
            self._settle()

    def feed(self, body: bytes) -> None:
        super().feed(body)
        if self._unread_bytes > READ_AHEAD_BYTES:
            self._link.pause_reading()
        self._news.set()

    def end_of_body(self) -> None:
        super().end_of_body()
        self._news.set()

    def ended(self) -> None:
        self._news.set()
        self._flushed.set()

    def flush(self) -> None:
        super().flush()
        self._flushed.set()

    async def receive(self) -> dict[str, Any]:
        """ASGI: the next piece of the body; after the reply, or the client's leaving, ``http.disconnect``."""
        self._say_continue()
        if not self.disconnected and not self.complete:
            if not self._news.is_set():
                self._link.resume_reading()
                await self._news.wait()
            self._news.clear()
        if self.disconnected or self.complete:
            return {"type": "http.disconnect"}
        parts, self._parts, self._unread_bytes = self._parts, [], 0
        return {"type": "http.request", "body": b"".join(parts), "more_body": self.more_body}

    async def send(self, message: Message) -> None:
        """ASGI: status and headers, then the body. Waits while the socket is behind."""
        if message["type"] == "http.response.start":
            self.begin(message["status"], message["headers"])
            return
        assert message["type"] == "http.response.body", message["type"]
        self.write(message["body"], last=not message["more_body"])
        while self._pending and not self.disconnected:
            self._flushed.clear()
            await self._flushed.wait()
