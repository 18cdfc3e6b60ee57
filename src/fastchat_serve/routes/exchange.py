"""One HTTP request and its reply: what the hot routes use of the server.

The reply is written to an `Outlet`, from plain code: an engine's step calls a sink, the sink calls
`Outlet.write`, and the bytes are with the socket. No task wakes for it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from typing import Protocol, TypeVar

import msgspec

from fastchat_serve.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType

__all__ = [
    "JSON_CONTENT",
    "MAX_BACKLOG_BYTES",
    "Exchange",
    "Header",
    "Outlet",
    "decode",
    "header",
    "new_request_id",
    "request_id",
    "require_json",
    "too_large",
]

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
_COUNTED_BYTES = 4096
_JSON_TYPE = re.compile(rb"application/(?:[\w.+-]+\+)?json\s*(?:;|$)", re.IGNORECASE)


class Outlet(Protocol):
    """Where a reply is written, by plain calls from wherever a piece of it comes to be.

    `cycle.Cycle` is one, for our own server; `asgi.AsgiOutlet` does it through any server's ASGI `send`. Neither
    ever waits: while the socket is behind, what is written piles up, and leaves as one piece.
    """

    def begin(self, status: int, headers: Iterable[Header]) -> None:
        """Set status and headers."""

    def write(self, body: bytes, *, last: bool = False) -> int:
        """Send a piece of the body. Returns how many bytes have piled up."""

    def drop_backlog(self) -> None:
        """Forget what piled up."""


class Exchange:
    """One request that was let in, and its reply.

    Args:
        headers: The request's, names in lower case.
        id_: What client and log call the request.
        tenant: Who asks, see `GenerateRequest.tenant`.
        more_headers: For the reply, beside its own.
    """

    __slots__ = ("_more_headers", "headers", "id", "outlet", "started", "tenant", "waited_s")

    def __init__(
        self, headers: Iterable[Header], id_: str, tenant: str, outlet: Outlet, more_headers: Iterable[Header] = ()
    ) -> None:
        self.headers, self.id, self.tenant, self.outlet = headers, id_, tenant, outlet
        self._more_headers = more_headers
        self.started = False
        """The reply has a status; an error can no longer be one."""
        self.waited_s = 0.0
        """Before it could begin, because its model had to be loaded."""

    @property
    def unique_id(self) -> str:
        """`id`, with something of ours added if the client chose it: engines tell requests apart by it."""
        return f"{self.id}-{random.getrandbits(64):016x}" if header(self.headers, b"x-request-id") else self.id

    def begin(self, status: int, headers: Iterable[Header]) -> None:
        """Set status and headers of the reply."""
        self.started = True
        self.outlet.begin(status, [*headers, (b"x-request-id", self.id.encode()), *self._more_headers])

    def reply_json(self, body: bytes, status: int = 200, headers: Iterable[Header] = ()) -> None:
        """A whole reply at once."""
        self.begin(status, [JSON_CONTENT, (b"content-length", str(len(body)).encode()), *headers])
        self.outlet.write(body, last=True)


def request_id(headers: Iterable[Header]) -> str:
    """The client's ``x-request-id`` if it is harmless, else a new one."""
    given = header(headers, b"x-request-id")
    return given.decode() if given and _SAFE_ID.fullmatch(given) else new_request_id()


def new_request_id() -> str:
    """One of our own; for telling requests apart, no secret."""
    return f"{random.getrandbits(128):032x}"


def header(headers: Iterable[Header], name: bytes) -> bytes:
    """The first header of this (lower-case) name; empty if there is none."""
    for key, value in headers:
        if key == name:
            return value
    return b""


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
    if not (_has_more(body, b"[", MAX_NESTING // 2) or _has_more(body, b"{", MAX_NESTING // 2)):
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


def _has_more(body: bytes, byte: bytes, than: int) -> bool:
    """Whether `byte` occurs that often. Where it is rare, to look for it in much is 30 times as fast as to count it."""
    if len(body) < _COUNTED_BYTES:
        return body.count(byte) > than
    place = -1
    for _ in range(than + 1):
        place = body.find(byte, place + 1)
        if place < 0:
            return False
    return True


def require_json(headers: Iterable[Header], limit_bytes: int) -> None:
    """What the head says of the body must be: JSON, in plain, of at most `limit_bytes`.

    Raises:
        UnsupportedMediaType, PayloadTooLarge: It is not.
    """
    content_type = b""
    for key, value in headers:
        if key == b"content-type":
            content_type = value
        elif key == b"content-encoding" and value not in (b"", b"identity"):
            raise UnsupportedMediaType("Send the body uncompressed, without a Content-Encoding.")
        elif key == b"content-length" and value.isdigit() and int(value) > limit_bytes:
            raise too_large(limit_bytes)
    if not _JSON_TYPE.match(content_type):
        raise UnsupportedMediaType("Send JSON, with the header 'Content-Type: application/json'.")


def too_large(limit_bytes: int) -> PayloadTooLarge:
    """The error for a body over `limit_bytes`."""
    return PayloadTooLarge(f"The body is longer than {limit_bytes} bytes.")
