"""One HTTP/1.1 connection to the upstream, and what it tells of a reply.

A protocol of our own on httptools' parser, because this is the hot path of a gateway: whatever one read
brought is handed on in one call, without a task to wake. `pool.py` keeps connections, `connect.py` makes them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import httptools

from fastchat_serve import EngineError, ServeError, Unavailable

__all__ = ["Connection", "Head", "Receiver", "unreachable"]

MAX_HEAD_BYTES = 256 * 1024
"""Of a reply, everything that comes before its body."""


class Head:
    """Status and headers of a reply, names in lower case; of a repeated header the last."""

    __slots__ = ("headers", "status")

    def __init__(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.status, self.headers = status, headers

    def get(self, name: bytes) -> str:
        """A header's value, empty if there is none."""
        return self.headers.get(name, b"").decode("latin-1").strip()


class Receiver(Protocol):
    """Who made a request: told of its reply on the loop's thread, in this order, and last of exactly one end."""

    def on_head(self, head: Head) -> None: ...
    def on_data(self, data: bytes) -> None:
        """All of the body that came with one read."""

    def on_end(self) -> None:
        """The reply is whole."""

    def on_lost(self, error: ServeError) -> None:
        """It never will be."""


class Connection(asyncio.Protocol):
    """Carries one exchange after the other.

    Args:
        idle: Called when the connection can carry another exchange.
        closed: Called once, when it is no more.
    """

    def __init__(self, idle: Callable[[Connection], None], closed: Callable[[Connection], None]) -> None:
        self.exchanges = 0
        self.heard = 0.0
        """Loop time of the last sign of life."""
        self._on_idle, self._on_closed = idle, closed
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._is_closed = False

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def silent(self) -> bool:
        """Nothing has come of the reply under way."""
        return not self._heard_bytes

    def send(self, request: bytes, receiver: Receiver) -> None:
        """Begin an exchange. `request` is head and body."""
        assert self._transport is not None
        assert self._receiver is None
        self.exchanges += 1
        self.heard = self._loop.time()
        self._receiver = receiver
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._head: Head | None = None
        self._heard_bytes = 0  # until the body begins
        self._data: list[bytes] = []
        self._head_told = self._complete = self._keep = self._excess = False
        self._transport.write(request)

    def abort(self) -> None:
        """Close at once, so that the upstream stops working; the receiver hears no more."""
        self._receiver = self._parser = None
        if self._transport is not None:
            self._transport.abort()

    def lose(self, error: ServeError) -> None:
        """Close at once, and tell the receiver why."""
        receiver, self._receiver, self._parser = self._receiver, None, None
        if self._transport is not None:
            self._transport.abort()
        if receiver is not None:
            receiver.on_lost(error)

    # ------------------------------------------------------------------------------- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream's, as TCP and TLS have it
        self.heard = self._loop.time()

    def data_received(self, data: bytes) -> None:
        if self._receiver is None or self._parser is None:
            self.abort()  # nobody asked
            return
        self.heard = self._loop.time()
        if self._head is None:
            self._heard_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.lose(EngineError("The upstream's reply is not HTTP."))
            return
        if self._head is None and self._heard_bytes > MAX_HEAD_BYTES:
            self.lose(EngineError("The headers of the upstream's reply are too long."))
            return
        self._hand_on()

    def eof_received(self) -> bool:
        return False  # close

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._receiver is not None:
            if error is None and self._ends_with_the_connection:
                self._end()
            else:
                self.lose(unreachable("closed the connection before its reply was whole"))
        if not self._is_closed:
            self._is_closed = True
            self._on_closed(self)

    # ---------------------------------------------------------------------------------- the parser's side

    def on_message_begin(self) -> None:
        if self._complete:
            self._excess = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if self._complete or status < 200:  # of an interim reply, such as 103, nothing is of use
            return
        self._head = Head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        if not self._complete:
            self._data.append(data)

    def on_message_complete(self) -> None:
        if self._head is None:
            self._headers = {}
        elif self._parser is not None:
            self._complete = True
            self._keep = self._parser.should_keep_alive()  # the parser knows only here

    # ------------------------------------------------------------------------------------------------

    @property
    def _ends_with_the_connection(self) -> bool:
        """Whether the body has no length, so that the end of the connection is its end."""
        return (
            self._head is not None
            and b"content-length" not in self._headers
            and b"transfer-encoding" not in self._headers
        )

    def _hand_on(self) -> None:
        """Tell the receiver what one read brought. It may abort us at any of these calls."""
        if self._head is not None and not self._head_told and self._receiver is not None:
            self._head_told = True
            self._receiver.on_head(self._head)
        if self._data and self._receiver is not None:
            data = self._data[0] if len(self._data) == 1 else b"".join(self._data)
            self._data.clear()
            self._receiver.on_data(data)
        if self._complete and self._receiver is not None:
            self._end()

    def _end(self) -> None:
        receiver, self._receiver = self._receiver, None
        self._parser = None
        if receiver is not None:
            receiver.on_end()
        if self._keep and self.usable and not self._excess:
            self._on_idle(self)
        elif self._transport is not None:
            self._transport.close()


def unreachable(what: str) -> Unavailable:
    """For a client: the upstream is not there. It may come back."""
    return Unavailable(f"The upstream {what}.", code="upstream_unavailable", retry_after_s=1.0)
