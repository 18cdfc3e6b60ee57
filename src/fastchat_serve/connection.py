"""One client's connection: HTTP/1.1 on a socket, for uvicorn's server.

uvicorn's own protocol tells only the newest of pipelined requests that the client has gone, reads the head
of a request however long it is or takes, waits for a body for ever, keeps the trailers of a chunked body
however many there are, loses the body of a request that offers another protocol, waits for ever for a client
that does not read, and answers what is not HTTP in a shape of its own. httptools does the parsing in both.

Time limits are deadlines that `check` compares with the clock: the server calls it now and then for
every connection, which is cheaper than a timer for each request.
"""

from __future__ import annotations

import asyncio
import http
import logging
import math
import urllib.parse
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, cast

import httptools
import uvicorn
from litestar.types import ASGIApp, HTTPScope
from msgspec import Struct
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from fastchat_serve.cycle import AppCycle, Cycle, Head, HotCycle
from fastchat_serve.errors import InvalidRequest, ServeError
from fastchat_serve.routes.door import Door
from fastchat_serve.routes.errors import UNEXPECTED, error_body
from fastchat_serve.routes.exchange import Header, header, new_request_id
from fastchat_serve.routes.hot import End, HotRoute

__all__ = ["Connection", "ConnectionLimits", "TakeOver"]

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("fastchat_serve.access")

TakeOver = Callable[[Iterable[Header], asyncio.Transport], asyncio.Protocol]
"""From the headers of a request to the protocol that its connection is to go on with."""

_LOGGED_PATH_BYTES = 200
_CLIENT_LEFT = 499
"""In the access log, for a request that has no status: nginx's number for it."""


class ConnectionLimits(Struct, frozen=True, kw_only=True):
    """What a connection may cost. Times are kept to within half a second."""

    head_bytes: int = 64 * 1024
    """Request line and headers; also what may come after a body's last byte and before the request's end."""
    headers: int = 128
    head_s: float = 15.0
    """For a new connection's first byte, and from a head's first byte to its last."""
    body_s: float = 30.0
    """For every `part_bytes` of a body."""
    part_bytes: int = 64 * 1024
    keep_alive_s: float = 75.0
    """Idle between requests; longer than the usual 60 s of proxies, so that they close first."""
    send_s: float = 30.0
    """For a client to read `send_bytes` of what waits for it."""
    send_bytes: int = 16 * 1024
    linger_s: float = 2.0
    """For the rest of a body that was answered early: closing at once could cost the client its answer."""


class Connection(asyncio.Protocol):
    """For `uvicorn.Config`'s ``http``; uvicorn calls `shutdown`, and our server calls `check`.

    Args:
        limits: What it may cost.
        hot: Hot routes by their path; all else goes to the application.
        door: Lets requests in to hot routes.
        links: What takes a connection over that is to be a link of the cluster, by path; may raise `ServeError`.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
        hot: Mapping[bytes, HotRoute],
        door: Door,
        links: Mapping[bytes, TakeOver],
    ) -> None:
        self._app, self._access_log = cast(ASGIApp, config.loaded_app), config.access_log
        self._hot, self._door, self._links = hot, door, links
        self.client: tuple[str, int] | None = None
        self._state, self._loop, self._limits = server_state, _loop or asyncio.get_running_loop(), limits
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # from `connection_made`
        self.writing_paused = self._reading_paused = False
        self._read_by = self._send_by = math.inf  # loop time
        self._unsent_bytes = 0  # when `_send_by` was set
        self._cycles: deque[Cycle] = deque()
        """Requests whose replies are not complete; the first is being answered."""
        self._parser = _parser(self)
        self._in_head = self._in_body = False
        self._head_bytes = 0
        self._part_bytes = 0  # of a body, since its deadline was set
        self._overhead_bytes = 0  # that came within a body and were none of it, as trailers are
        self._incoming: Cycle | None = None  # whose body is being read
        self._refusal = b""  # the last words, once the replies that come before are complete
        self._deaf = False  # whatever still comes is not for us

    # -------------------------------------------------------------------------------------- the socket

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._state.connections.add(self)  # type: ignore[arg-type]  # uvicorn names its own classes
        self.transport = transport
        self._server, self.client = get_local_addr(transport), get_remote_addr(transport)
        self._scheme = "https" if is_ssl(transport) else "http"
        self._read_by = self._loop.time() + self._limits.head_s

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        for cycle in self._cycles:
            if self._access_log:
                self._log(cycle)
            cycle.disconnect()
        self._cycles.clear()
        self._incoming = None  # it holds us
        del self._parser  # and so does this

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._overhead_bytes += len(data)
        self._head_bytes += len(data)
        try:
            self._parse(memoryview(data))
        except httptools.HttpParserError as error:
            self._refuse(_refusal(error))
        if self._in_head and self._head_bytes > self._limits.head_bytes:
            self._refuse(InvalidRequest("The request's head is too long."))
        elif self._in_body and self._overhead_bytes > self._limits.head_bytes:
            self._refuse(InvalidRequest("The request's trailers are too long."))

    def _parse(self, data: memoryview) -> None:
        """Have the parser call the methods below.

        It stops after a head that offers to change the protocol. Other processes of the cluster are taken at their
        word. Else, as Java's clients do it to begin with, the offer may be ignored (RFC 9110, section 7.8): another
        parser reads the head without it, and goes on.
        """
        while data:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
                if (take_over := self._links.get(self._url)) is not None:
                    self._become_link(take_over, bytes(data))
                    return
                version = self._parser.get_http_version().encode()
                lines = [b"%s %s HTTP/%s" % (self._parser.get_method(), self._url, version)]
                lines += [name + b": " + value for name, value in self._headers if name != b"upgrade"]
                self._parser = _parser(self)
                self._parser.feed_data(b"\r\n".join([*lines, b"", b""]))
            else:
                return

    def _become_link(self, take_over: TakeOver, rest: bytes) -> None:
        """Leave HTTP, and the server's care. `rest` is what has come since."""
        self._in_head = False
        try:
            if self._cycles:
                raise InvalidRequest("A connection with requests under way cannot become a link.")
            link = take_over(self._headers, self.transport)
        except ServeError as error:
            self._refuse(error)
            return
        self._deaf = True
        self._state.connections.discard(self)
        offered = header(self._headers, b"upgrade")
        head = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: " + offered
        self.transport.write(head + b"\r\n\r\n")
        self.transport.set_protocol(link)
        link.connection_made(self.transport)
        if rest:
            link.data_received(rest)

    def eof_received(self) -> None:
        """Close: who has nothing more to send is taken to have left."""

    def pause_writing(self) -> None:
        self.writing_paused = True
        self._expect_progress()

    def resume_writing(self) -> None:
        self.writing_paused = False
        if not self.transport.is_closing():
            self._send_by = math.inf
        if self._cycles:
            self._cycles[0].flush()

    def pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()
            if self._in_head or self._in_body:  # nobody could send meanwhile
                limits = self._limits
                self._read_by = self._loop.time() + (limits.head_s if self._in_head else limits.body_s)

    # -------------------------------------------------------------------------------------- the server

    @property
    def hot_requests(self) -> int:
        """Requests under way that have no task."""
        return sum(isinstance(cycle, HotCycle) for cycle in self._cycles)

    def check(self, now: float) -> None:
        """Give up a client that was too slow."""
        unread = now >= self._send_by and self._unsent_bytes - self._expect_progress() < self._limits.send_bytes
        if unread or (now >= self._read_by and not self._reading_paused):
            self.transport.abort()

    def shutdown(self) -> None:
        """Finish what is under way, and close."""
        if self._cycles:
            self._cycles[-1].keep_alive = False
        elif not self._deaf:  # else it is closing already, in a way that loses nothing
            self._close()

    # -------------------------------------------------------------------------------------- the parser

    def on_message_begin(self) -> None:
        self._in_head = True
        self._url = b""
        self._headers: list[Header] = []
        self._read_by = self._loop.time() + self._limits.head_s

    def on_url(self, part: bytes) -> None:
        self._url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer is for nobody here
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self._overhead_bytes = 0
        if len(self._headers) > self._limits.headers:
            raise _Refused("The request has too many headers.")
        if self._head_bytes > self._limits.head_bytes:  # else it was shorter, whatever else came with it
            size = len(self._url) + sum(len(name) + len(value) for name, value in self._headers)
            if size > self._limits.head_bytes:
                raise _Refused("The request's head is too long.")
        if self._parser.should_upgrade():
            if self._parser.get_method() == b"CONNECT":
                raise _Refused("This server is no proxy.")
            return  # and here comes the same head again, see `_parse`
        version = self._parser.get_http_version()
        hosts = expects_continue = 0
        for name, value in self._headers:
            if name == b"host":
                hosts += 1
            elif name == b"expect" and value.lower() == b"100-continue":
                expects_continue = 1
            elif name == b"transfer-encoding" and value.lower() != b"chunked":
                raise _Refused("The only transfer coding that this server knows is chunked.")
        if version not in ("1.0", "1.1"):
            raise _Refused("This server speaks HTTP/1.1.")
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise _Refused("A request needs one Host header.")  # RFC 9112, section 3.2
        self._read_by = self._loop.time() + self._limits.body_s
        head = Head(
            method=self._parser.get_method().decode("ascii"),
            url=self._url,
            headers=self._headers,
            keep_alive=version != "1.0" and self._parser.should_keep_alive(),
            http_1_0=version == "1.0",
            expects_continue=bool(expects_continue) and version == "1.1",  # RFC 9110, section 10.1.1
        )
        self._incoming = self._cycle(head)
        self._cycles.append(self._incoming)
        if len(self._cycles) == 1:
            self._open_first()
        else:
            self.pause_reading()

    def on_body(self, body: bytes) -> None:
        self._overhead_bytes = 0
        self._part_bytes += len(body)
        if self._part_bytes >= self._limits.part_bytes:
            self._part_bytes = 0
            self._read_by = self._loop.time() + self._limits.body_s
        assert self._incoming is not None
        self._incoming.feed(body)

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade():  # the end of its head only
            return
        self._in_body = False
        self._head_bytes = self._part_bytes = 0
        self._read_by = math.inf
        assert self._incoming is not None
        self._incoming.end_of_body()
        self._incoming = None

    # -------------------------------------------------------------------------------------- the replies

    def _cycle(self, head: Head) -> Cycle:
        """For the request whose head was just read."""
        route = self._hot.get(head.url)
        if route is not None and head.method == "POST":
            return HotCycle(self, head, route, self._door)
        return AppCycle(self, head, self._app, self._scope(head), self._spawn)

    def _scope(self, head: Head) -> HTTPScope:
        url = httptools.parse_url(head.url)
        raw_path = url.path or b"/"
        path = raw_path.decode("ascii")
        return cast(
            HTTPScope,
            {
                "type": "http",
                "asgi": {"version": "3.0", "spec_version": "2.3"},
                "http_version": "1.0" if head.http_1_0 else "1.1",
                "method": head.method,
                "scheme": self._scheme,
                "path": urllib.parse.unquote(path) if "%" in path else path,
                "raw_path": raw_path,
                "query_string": url.query or b"",
                "root_path": "",
                "headers": head.headers,
                "server": self._server,
                "client": self.client,
                "state": {},
            },
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def call_soon(self, callback: End) -> None:
        self._loop.call_soon(callback)

    def _open_first(self) -> None:
        """Not from within the parser, nor from within the reply before."""
        self._loop.call_soon(self._cycles[0].open)

    @property
    def common_headers(self) -> list[Header]:
        return self._state.default_headers

    def completed(self, cycle: Cycle) -> None:
        """The first reply is complete."""
        self._cycles.popleft()
        self._state.total_requests += 1
        if self._access_log:
            self._log(cycle)
        if cycle.more_body:
            self._hang_up()
        elif not cycle.keep_alive:
            self._close()
        elif self._cycles:
            self._open_first()
        elif self._refusal:
            self._hang_up()
        else:
            self.resume_reading()
            if not self._in_head:
                self._read_by = self._loop.time() + self._limits.keep_alive_s

    def _refuse(self, error: ServeError) -> None:
        """Answer what is no request, after all that were, and close."""
        body = error_body(error)
        head = f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}\r\n"
        head += "content-type: application/json\r\nconnection: close\r\n"
        head += f"x-request-id: {new_request_id()}\r\ncontent-length: {len(body)}\r\n\r\n"
        self._refusal = head.encode() + body
        self._deaf = True
        self._in_head = self._in_body = False
        self._read_by = math.inf  # the replies before it may take their time
        if (broken := self._incoming) is not None:  # its body will not come
            self._cycles.pop()
            broken.disconnect()
            if broken.status:
                self.transport.abort()
                return
        if not self._cycles:
            self._hang_up()

    def _close(self) -> None:
        """Close once all is sent."""
        self._expect_progress()
        self.transport.close()

    def _expect_progress(self) -> int:
        """Give the client time to read some more. Returns how many bytes wait for it."""
        self._send_by = self._loop.time() + self._limits.send_s
        self._unsent_bytes = self.transport.get_write_buffer_size()
        return self._unsent_bytes

    def _hang_up(self) -> None:
        """Say the last words and close such that the client can read all that was said (RFC 9112, section 9.6)."""
        self._deaf = True
        if self._refusal:
            self.transport.write(self._refusal)
        if not self.transport.can_write_eof():  # TLS has no half of a close, and says by itself that it ends
            self._close()
            return
        self.transport.write_eof()
        self.resume_reading()
        self._read_by = self._loop.time() + self._limits.linger_s

    def _log(self, cycle: Cycle) -> None:
        """Without the query: no route reads one, and some clients put keys there."""
        host, port = self.client or ("-", 0)
        path = cycle.head.url.partition(b"?")[0][:_LOGGED_PATH_BYTES].decode("ascii", "replace")
        access_logger.info('%s:%d "%s %s" %d', host, port, cycle.head.method, path, cycle.status or _CLIENT_LEFT)


class _Refused(Exception):
    """What the parser's callbacks raise to end it; the message is for the client."""


def _refusal(error: httptools.HttpParserError) -> ServeError:
    """What a client is told of what ended the parser, which hides the errors of its callbacks behind one of its own."""
    cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
    if isinstance(cause, _Refused):
        return InvalidRequest(str(cause))
    if cause is None or isinstance(cause, httptools.HttpParserError | UnicodeDecodeError):
        return InvalidRequest("This is not a valid HTTP request.")
    logger.error("A request could not be read: this is a fault of ours.", exc_info=cause)
    return UNEXPECTED


def _parser(connection: Connection) -> httptools.HttpRequestParser:
    parser = httptools.HttpRequestParser(connection)
    # What follows a request that closes the connection is not taken for an error in it.
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser
