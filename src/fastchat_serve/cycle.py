"""One request on a connection, and its reply.

The body of a reply is written by a plain call, `write`, from wherever a piece of it comes to be: an engine's
step writes each token without a task that wakes for it. ASGI's `send` is a thin layer above that. Pieces are
framed here, once, and each is one write to the transport; while the socket is behind they pile up, and leave
as one.
"""

from __future__ import annotations

import asyncio
import http
import logging
from collections.abc import Awaitable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from litestar.types import ASGIApp, Message, Scope

from fastchat_serve.routes.errors import UNEXPECTED, error_body
from fastchat_serve.routes.exchange import JSON_CONTENT, Header

__all__ = ["Cycle", "Link"]

logger = logging.getLogger(__name__)

READ_AHEAD_BYTES = 64 * 1024
"""Of a body that nobody reads; then the socket is not read either."""

_STATUS_LINES: Mapping[int, bytes] = MappingProxyType(
    {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in http.HTTPStatus}
)
_BODILESS = frozenset({204, 304})


class Link(Protocol):
    """What a cycle needs of its connection."""

    transport: asyncio.Transport
    writing_paused: bool
    """The socket is behind: a piece that is written now would only be kept in memory."""

    @property
    def common_headers(self) -> list[Header]:
        """On every reply."""
        ...

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def completed(self, cycle: Cycle) -> None:
        """The reply is written."""


class Cycle:
    """See the module. It is an `Outlet` of `routes/exchange.py`.

    Args:
        method: Replies to HEAD have no body.
        keep_alive: The client may send another request afterwards.
        http_1_0: The client cannot read a chunked body; its end is the connection's.
        expects_continue: The client waits for "100 Continue" before it sends the body.
    """

    __slots__ = (
        "_chunked",
        "_expects_continue",
        "_flushed",
        "_head",
        "_http_1_0",
        "_last",
        "_link",
        "_method",
        "_news",
        "_parts",
        "_pending",
        "_unread_bytes",
        "backlog_bytes",
        "complete",
        "disconnected",
        "keep_alive",
        "more_body",
        "status",
    )

    def __init__(
        self, link: Link, method: str, *, keep_alive: bool, http_1_0: bool = False, expects_continue: bool = False
    ) -> None:
        self._link, self._method = link, method
        self._http_1_0, self._expects_continue = http_1_0, expects_continue
        self.keep_alive = keep_alive
        self.disconnected = False
        """The client has gone."""
        # The request's body.
        self._parts: list[bytes] = []
        self._unread_bytes = 0
        self._news = asyncio.Event()
        self.more_body = True
        """Of the request, some is still to come."""
        # The reply.
        self._chunked = self._last = False
        self._head = b""
        self._pending: list[bytes] = []
        self._flushed: asyncio.Event | None = None
        self.backlog_bytes = 0
        self.status = 0
        """Of the reply, once it has one."""
        self.complete = False
        """All of the reply was handed to the transport."""

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Have the application answer. Whatever it does, the client gets a reply or a closed connection."""
        try:
            await app(scope, self.receive, self.send)  # type: ignore[arg-type]
        except Exception:
            logger.exception("A request failed outside of the application's own error handling.")
        finally:
            self._settle()

    def _settle(self) -> None:
        if self.complete or self.disconnected or self._last:
            return
        if self.status:
            self._link.transport.abort()  # half a reply must not look like a whole one
        else:
            body = error_body(UNEXPECTED)
            self._begin(UNEXPECTED.status, [JSON_CONTENT, (b"content-length", str(len(body)).encode())])
            self.write(body, last=True)

    # --------------------------------------------------------------------------- what comes from the client

    def feed(self, body: bytes) -> None:
        """More of the request's body."""
        self._parts.append(body)
        self._unread_bytes += len(body)
        if self._unread_bytes > READ_AHEAD_BYTES:
            self._link.pause_reading()
        self._news.set()

    def end_of_body(self) -> None:
        self.more_body = False
        self._news.set()

    def disconnect(self) -> None:
        """The client has gone."""
        self.disconnected = True
        self._tell()

    async def receive(self) -> dict[str, Any]:
        """ASGI: the next piece of the body; after the reply, or the client's leaving, ``http.disconnect``."""
        if self._expects_continue and not self.status:
            self._expects_continue = False
            self._link.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self.disconnected and not self.complete:
            if not self._news.is_set():
                self._link.resume_reading()
                await self._news.wait()
            self._news.clear()
        if self.disconnected or self.complete:
            return {"type": "http.disconnect"}
        parts, self._parts, self._unread_bytes = self._parts, [], 0
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    # ----------------------------------------------------------------------------- what goes to the client

    def _begin(self, status: int, headers: Iterable[Header]) -> None:
        """Status and headers leave with the first piece of the body, as ASGI has it."""
        self.status = status
        length = closes = False
        lines = [_STATUS_LINES[status]]
        for name, value in (*self._link.common_headers, *headers):
            lines.append(b"%b: %b" % (name, value))
            length = length or name == b"content-length"
            closes = closes or (name == b"connection" and value == b"close")
        has_body = self._method != "HEAD" and status not in _BODILESS
        self._chunked = has_body and not length and not self._http_1_0
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

    def drive(self, sending: Awaitable[None]) -> None:
        """Have ASGI's `send` of status and headers done, without a task; nothing in it waits."""
        for _ in sending.__await__():
            raise RuntimeError("a middleware waited for something while it sent the head of a reply")

    def write(self, body: bytes, *, last: bool = False) -> None:
        """A piece of the body. Never waits."""
        if self._last or self.disconnected:
            return
        self._last = last
        if self._link.writing_paused:
            self._pending.append(body)
            self.backlog_bytes += len(body)
        else:
            self._write(body)

    def drop_backlog(self) -> None:
        """Forget what piled up."""
        self._pending.clear()
        self.backlog_bytes = 0

    def flush(self) -> None:
        """The socket is free again: what piled up leaves as one piece."""
        if self._pending:
            body = b"".join(self._pending)
            self.drop_backlog()
            self._write(body)
        if self._flushed is not None:
            self._flushed.set()

    def _write(self, body: bytes) -> None:
        if self._chunked:
            framed = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if self._last:
                framed += b"0\r\n\r\n"
        else:
            framed = b"" if self._method == "HEAD" else body
        if self._head:
            framed = self._head + framed
            self._head = b""
        self._link.transport.write(framed)
        if self._last:
            self.complete = True
            self._tell()
            self._link.completed(self)

    def _tell(self) -> None:
        self._news.set()
        if self._flushed is not None:
            self._flushed.set()

    async def send(self, message: Message) -> None:
        """ASGI: status and headers, then the body. Waits while the socket is behind."""
        if message["type"] == "http.response.start":
            self._begin(message["status"], message["headers"])
            return
        assert message["type"] == "http.response.body", message["type"]
        self.write(message["body"], last=not message["more_body"])
        while self._pending and not self.disconnected:
            self._flushed = asyncio.Event()
            await self._flushed.wait()
