"""One client's connection: uvicorn's HTTP/1.1 protocol, with what it lacks.

uvicorn tells only the newest of pipelined requests that the client has gone, reads the head of a
request however long it is or takes, waits for a body for ever, keeps the trailers of a chunked body
however many there are, loses the body of a request that offers another protocol, and answers what
is not HTTP in a shape of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from fastchat_serve.errors import InvalidRequest
from fastchat_serve.routes.errors import error_body

__all__ = ["BODY_TIMEOUT_S", "HEAD_TIMEOUT_S", "MAX_HEADERS", "MAX_HEAD_BYTES", "Connection"]

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers; also what may come after a body's last byte and before the request's end."""
MAX_HEADERS = 128
HEAD_TIMEOUT_S = 15.0
"""For a new connection's first byte, and from a head's first byte to its last."""
BODY_TIMEOUT_S = 30.0
"""For every `BODY_PART_BYTES` of a body."""
BODY_PART_BYTES = 64 * 1024


class Connection(HttpToolsProtocol):
    """For `uvicorn.Config`'s ``http``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unanswered: list[RequestResponseCycle] = []
        self._in_head = self._in_body = False
        self._head_bytes = 0
        self._part_bytes = 0  # of a body, since its timer was set
        self._overhead_bytes = 0  # that came within a body and were none of it, as trailers are
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_more(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        for cycle in self._unanswered:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        was_in_head, was_in_body = self._in_head, self._in_body
        self._overhead_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(memoryview(data))
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self._in_head:
            self._head_bytes = self._head_bytes + len(data) if was_in_head else 0
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The request's head is too long.")
            elif self._timer is None or was_in_body:
                self._expect_more(HEAD_TIMEOUT_S)
        elif self._in_body:
            self._part_bytes += len(data)
            if self._overhead_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The request's trailers are too long.")
            elif not was_in_body or self._part_bytes >= BODY_PART_BYTES:
                self._part_bytes = 0
                self._expect_more(BODY_TIMEOUT_S)
        elif self._timer is not None:
            self._stop_timer()

    def _parse(self, data: memoryview) -> None:
        """Have the parser call the methods below.

        It stops after a head that offers to change the protocol, as Java's clients do to begin with. A server may
        ignore that (RFC 9110, section 7.8): another parser reads the head without the offer, and goes on.
        """
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
                version = self.parser.get_http_version().encode()
                lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
                lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))
            else:
                return

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer is for nobody here
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            raise ValueError("The request's head is too long.")  # the parser stops, and `send_400_response` follows
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("This is no proxy.")
            return
        super().on_headers_complete()
        assert self.cycle is not None
        self._unanswered = [cycle for cycle in self._unanswered if not cycle.response_complete]
        self._unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._overhead_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():  # the end of its head only
            return
        self._in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self.transport.is_closing():
            return
        body = error_body(InvalidRequest(msg))
        head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def _expect_more(self, within_s: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(within_s, self._give_up, within_s)

    def _give_up(self, within_s: float) -> None:
        if self.flow.read_paused:  # then it is us who do not read
            self._expect_more(within_s)
        else:
            self.transport.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
