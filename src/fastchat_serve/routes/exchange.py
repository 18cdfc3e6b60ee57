"""One HTTP request and its reply, at the level of ASGI: what the hot routes use of the server.

The reply is written to an `Outlet`, from plain code: an engine's step calls a sink, the sink calls
`Outlet.write`, and the bytes are with the socket. No task wakes for it. The request's own task
meanwhile waits in `Exchange.finished`, which returns when the reply is complete or the client has gone.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Coroutine, Iterable
from typing import Any, Protocol, TypeVar

import msgspec
from litestar.types import Receive, Scope, Send

from fastchat_serve.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType

__all__ = [
    "JSON_CONTENT",
    "MAX_BACKLOG_BYTES",
    "OUTLET",
    "AsgiOutlet",
    "Exchange",
    "Header",
    "Outlet",
    "decode",
    "header",
    "new_request_id",
    "request_id",
]

OUTLET = "fastchat_serve.outlet"
"""Name of the ASGI extension by which our server offers the `Outlet` of a request, and of its one entry."""

Header = tuple[bytes, bytes]
T = TypeVar("T")

JSON_CONTENT: Header = (b"content-type", b"application/json")
MAX_BACKLOG_BYTES = 128 * 1024
"""What may pile up for a client that does not read; then its stream is ended."""
MAX_NESTING = 64
"""Depth of JSON that is decoded at all. The decoder recurses, so the interpreter's limit is no guard."""
MAX_CONTAINERS = 100_000
"""Arrays and objects in one body. Two bytes of JSON become a hundred bytes of memory each."""

_SAFE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_STRING = re.compile(rb'"[^"]*+"?')
_OPENING = frozenset(b"[{")
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}'))
# Where msgspec says that something is: "`key` in `$.logit_bias`".
_PLACE = re.compile(r"(?:`key` in )?`\$\.?([^`]*)`")
_SHOWN_CHARS = 200
_JSON_TYPE = re.compile(rb"application/(?:[\w.+-]+\+)?json\s*(?:;|$)", re.IGNORECASE)


class Outlet(Protocol):
    """Where the body of a reply is written, by plain calls from wherever a piece of it comes to be.

    `cycle.Cycle` is one, for our own server; `AsgiOutlet` does it through any server's ASGI `send`. Neither ever
    waits: while the socket is behind, what is written piles up, and leaves as one piece.
    """

    backlog_bytes: int
    """What has piled up."""

    def drive(self, sending: Awaitable[None]) -> None:
        """Have ASGI's `send` of status and headers done, without a task."""

    def write(self, body: bytes, *, last: bool = False) -> None:
        """Send a piece of the body."""

    def drop_backlog(self) -> None:
        """Forget what piled up."""


class AsgiOutlet:
    """An `Outlet` for servers other than ours. `send` is driven by hand: as a rule it finishes at once."""

    __slots__ = ("_blocked", "_last", "_pending", "_send", "backlog_bytes")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._blocked = self._last = False
        self._pending: list[bytes] = []
        self.backlog_bytes = 0

    def write(self, body: bytes, *, last: bool = False) -> None:
        if self._blocked:
            self._pending.append(body)
            self.backlog_bytes += len(body)
            self._last = self._last or last
        else:
            self.drive(self._send({"type": "http.response.body", "body": body, "more_body": not last}))

    def drop_backlog(self) -> None:
        self._pending.clear()
        self.backlog_bytes = 0

    def drive(self, sending: Awaitable[None]) -> None:
        assert isinstance(sending, Coroutine)  # as in uvicorn; other awaitables would need wrapping
        try:
            waits_for = sending.send(None)
        except StopIteration:
            return
        except OSError:  # how ASGI servers say that the client has gone; `Exchange.finished` hears of it too
            return
        self._blocked = True
        if waits_for is None:
            asyncio.get_running_loop().call_soon(self._resume, sending)
        else:
            waits_for._asyncio_future_blocking = False  # what a task does with the future it is handed
            waits_for.add_done_callback(lambda _: self._resume(sending))

    def _resume(self, sending: Coroutine[Any, Any, None]) -> None:
        self._blocked = False
        self.drive(sending)
        if self._pending and not self._blocked:
            body, last = b"".join(self._pending), self._last
            self.drop_backlog()
            self.write(body, last=last)


class Exchange:
    """One request: its id, its body, and the outlet for its reply."""

    __slots__ = ("_receive", "_send", "id", "outlet", "scope", "started")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.started = False
        """The reply has a status; an error can no longer be one."""
        offered = (scope.get("extensions") or {}).get(OUTLET)
        self.outlet: Outlet = AsgiOutlet(send) if offered is None else offered[OUTLET]  # type: ignore[assignment]
        self.id = request_id(scope)

    @property
    def unique_id(self) -> str:
        """`id`, with something of ours added if the client chose it: engines tell requests apart by it."""
        return f"{self.id}-{random.getrandbits(64):016x}" if header(self.scope, b"x-request-id") else self.id

    async def body(self, limit_bytes: int) -> bytes:
        """The whole body, which must be plain JSON.

        Raises:
            UnsupportedMediaType: It says that it is something else, or compressed.
            PayloadTooLarge: It is longer than `limit_bytes`; found out while reading.
            InvalidRequest: The client left in the middle.
        """
        _require_json(self.scope, limit_bytes)
        message = await self._receive()
        body: bytes = message.get("body", b"")  # type: ignore[assignment]
        if message.get("more_body"):
            parts, size = [body], len(body)
            while message.get("more_body"):
                message = await self._receive()
                parts.append(message.get("body", b""))  # type: ignore[arg-type]
                size += len(parts[-1])
                if size > limit_bytes:
                    raise _too_large(limit_bytes)
            body = b"".join(parts)
        if message["type"] == "http.disconnect":
            raise InvalidRequest("The request was broken off.")
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes)
        return body

    async def finished(self) -> None:
        """Return when the reply is complete, or the client has gone.

        ASGI answers ``http.disconnect`` in either case (spec, "Disconnect - receive event").
        """
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def begin(self, status: int, headers: Iterable[Header]) -> None:
        """Set status and headers of the reply. It goes through ASGI, so that middleware can add to them."""
        self.started = True
        self.outlet.drive(self._send({"type": "http.response.start", "status": status, "headers": headers}))

    def reply_json(self, body: bytes, status: int = 200, headers: Iterable[Header] = ()) -> None:
        """A whole reply at once."""
        length = (b"content-length", str(len(body)).encode())
        self.begin(status, [JSON_CONTENT, length, (b"x-request-id", self.id.encode()), *headers])
        self.outlet.write(body, last=True)


def request_id(scope: Scope) -> str:
    """The client's ``x-request-id`` if it is harmless, else a new one; the same for all of a request."""
    state: dict[str, Any] = scope.setdefault("state", {})
    if "request_id" not in state:
        given = header(scope, b"x-request-id")
        state["request_id"] = given.decode() if _SAFE_ID.fullmatch(given) else new_request_id()
    known: str = state["request_id"]
    return known


def new_request_id() -> str:
    """One of our own; for telling requests apart, no secret."""
    return f"{random.getrandbits(128):032x}"


def header(scope: Scope, name: bytes) -> bytes:
    """The first header of this (lower-case) name; empty if there is none."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """`body` as the decoder's type.

    Raises:
        InvalidRequest: It is not JSON, not valid UTF-8, too deep, or not of that shape; says where.
    """
    try:
        _require_utf8(body)
        _require_modest_shape(body)
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except msgspec.DecodeError as error:
        # msgspec says "truncated" of a lone surrogate too.
        what = str(error).replace("Input data was truncated", "it ends too early or holds an incomplete character")
        raise InvalidRequest(f"The body is not valid JSON: {what.removeprefix('JSON is malformed: ')}.") from None
    except RecursionError:
        raise InvalidRequest("The JSON is nested too deep.") from None


def _require_utf8(body: bytes) -> None:
    """The decoder itself looks into those strings only that it reads."""
    if body.isascii():
        return
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not valid UTF-8 at byte {error.start}.") from None


def _invalid(said: str) -> InvalidRequest:
    """The error for what msgspec says: "Expected `int`, got `str` - at `$.n`"."""
    problem, _, place = said.rpartition(" - at ")
    found = _PLACE.fullmatch(place)
    if found is None:
        problem = said
    if len(problem) > _SHOWN_CHARS:  # it may quote what was sent
        problem = problem[:_SHOWN_CHARS] + "…"
    if found is None:
        return InvalidRequest(f"{problem}.")
    return InvalidRequest(f"{problem}, at {place.replace('`', '')}.", param=found[1] or None)


def _require_modest_shape(body: bytes) -> None:
    """Right for all that comes before the first mistake in the JSON; the decoder goes no further either."""
    if body.count(b"[") + body.count(b"{") <= MAX_NESTING:
        return
    # Left over: quotes that delimit strings, and brackets; then no strings; then what is outside of them.
    marks = body.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NOT_STRUCTURE).replace(b'""', b"")
    brackets = _STRING.sub(b"", marks)
    if brackets.count(b"[") + brackets.count(b"{") > MAX_CONTAINERS:
        raise InvalidRequest(f"The JSON has more than {MAX_CONTAINERS} arrays and objects.")
    depth = 0
    for bracket in brackets[: 2 * MAX_CONTAINERS]:  # more of them cannot match
        depth += 1 if bracket in _OPENING else -1
        if depth > MAX_NESTING:
            raise InvalidRequest(f"The JSON is nested more than {MAX_NESTING} levels deep.")


def _require_json(scope: Scope, limit_bytes: int) -> None:
    content_type = b""
    for key, value in scope["headers"]:
        if key == b"content-type":
            content_type = value
        elif key == b"content-encoding" and value not in (b"", b"identity"):
            raise UnsupportedMediaType("Send the body uncompressed, without a Content-Encoding.")
        elif key == b"content-length" and value.isdigit() and int(value) > limit_bytes:
            raise _too_large(limit_bytes)
    if not _JSON_TYPE.match(content_type):
        raise UnsupportedMediaType("Send JSON, with the header 'Content-Type: application/json'.")


def _too_large(limit_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is longer than {limit_bytes} bytes.")
