"""One client's connection: uvicorn's HTTP/1.1 protocol, with what it lacks.

uvicorn tells only the newest of pipelined requests that the client has gone, reads the head of a
request however long it is or takes, and answers what is not HTTP in a shape of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from fastchat_serve.errors import InvalidRequest
from fastchat_serve.routes.errors import error_body

__all__ = ["HEAD_TIMEOUT_S", "MAX_HEAD_BYTES", "Connection"]

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers."""
HEAD_TIMEOUT_S = 15.0
"""For a new connection's first byte, and from a head's first byte to its last."""


class Connection(HttpToolsProtocol):
    """For `uvicorn.Config`'s ``http``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unanswered: list[RequestResponseCycle] = []
        self._in_head = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        for cycle in self._unanswered:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        had_begun = self._in_head
        super().data_received(data)
        if self._in_head:
            self._head_bytes = self._head_bytes + len(data) if had_begun else 0
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The request's head is too long.")
            elif self._head_timer is None:
                self._expect_head()
        elif self._head_timer is not None:
            self._head_arrived()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._in_head = False
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            raise ValueError("The request's head is too long.")  # the parser stops, and `send_400_response` follows
        super().on_headers_complete()
        assert self.cycle is not None
        self._unanswered = [cycle for cycle in self._unanswered if not cycle.response_complete]
        self._unanswered.append(self.cycle)

    def send_400_response(self, msg: str) -> None:
        if self.transport.is_closing():
            return
        body = error_body(InvalidRequest(msg))
        head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
