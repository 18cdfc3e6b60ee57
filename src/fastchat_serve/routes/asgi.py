"""An exchange by way of ASGI: for any server that speaks it, and for routes that need a task."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
from typing import Any
from urllib.parse import parse_qs

from litestar.types import Receive, Scope, Send

from fastchat_serve.errors import InvalidRequest
from fastchat_serve.routes.door import tenant
from fastchat_serve.routes.exchange import Exchange, Header, require_json, too_large
from fastchat_serve.routes.response import scope_id

__all__ = ["AsgiExchange"]


class AsgiOutlet:
    """An `Outlet` for servers other than ours. `send` is driven by hand: as a rule it finishes at once."""

    __slots__ = ("_backlog_bytes", "_blocked", "_last", "_pending", "_send")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._blocked = self._last = False
        self._pending: list[bytes] = []
        self._backlog_bytes = 0

    def begin(self, status: int, headers: Iterable[Header]) -> None:
        self._drive(self._send({"type": "http.response.start", "status": status, "headers": headers}))

    def write(self, body: bytes, *, last: bool = False) -> int:
        if self._blocked:
            self._pending.append(body)
            self._backlog_bytes += len(body)
            self._last = self._last or last
        else:
            self._drive(self._send({"type": "http.response.body", "body": body, "more_body": not last}))
        return self._backlog_bytes

    def drop_backlog(self) -> None:
        self._pending.clear()
        self._backlog_bytes = 0

    def _drive(self, sending: Awaitable[None]) -> None:
        assert isinstance(sending, Coroutine)  # as in uvicorn; other awaitables would need wrapping
        try:
            waits_for = sending.send(None)
        except StopIteration:
            return
        except OSError:  # how ASGI servers say that the client has gone; `AsgiExchange.finished` hears of it too
            return
        self._blocked = True
        if waits_for is None:
            asyncio.get_running_loop().call_soon(self._resume, sending)
        else:
            waits_for._asyncio_future_blocking = False  # what a task does with the future it is handed
            waits_for.add_done_callback(lambda _: self._resume(sending))

    def _resume(self, sending: Coroutine[Any, Any, None]) -> None:
        self._blocked = False
        self._drive(sending)
        if self._pending and not self._blocked:
            body, last = b"".join(self._pending), self._last
            self.drop_backlog()
            self.write(body, last=last)


class AsgiExchange(Exchange):
    """One request that a guard let in."""

    __slots__ = ("_query", "_receive")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope["headers"], scope_id(scope), tenant(scope), AsgiOutlet(send))
        self._query, self._receive = scope["query_string"], receive

    def asked(self, name: str) -> str:
        """A parameter of the query; empty if it is not there."""
        return parse_qs(self._query.decode("latin-1")).get(name, [""])[0]

    async def body(self, limit_bytes: int) -> bytes:
        """The whole body, which must be plain JSON.

        Raises:
            UnsupportedMediaType: It says that it is something else, or compressed.
            PayloadTooLarge: It is longer than `limit_bytes`; found out while reading.
            InvalidRequest: The client left in the middle.
        """
        require_json(self.headers, limit_bytes)
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message: Any = await self._receive()
            if message["type"] == "http.disconnect":
                raise InvalidRequest("The request was broken off.")
            parts.append(message["body"])
            size += len(message["body"])
            if size > limit_bytes:
                raise too_large(limit_bytes)
            more = message["more_body"]
        return b"".join(parts)

    async def finished(self) -> None:
        """Return when the reply is complete, or the client has gone.

        ASGI answers ``http.disconnect`` in either case (spec, "Disconnect - receive event").
        """
        while (await self._receive())["type"] != "http.disconnect":
            pass
