"""Requests to one upstream, and replies that are read as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from msgspec import Struct

from fastchat_backend_openai.address import Address
from fastchat_backend_openai.connection import Head
from fastchat_backend_openai.pool import Call, Pool
from fastchat_serve import EngineError, ServeError

__all__ = ["Fetch", "Reply", "Upstream"]


class Reply(Struct, frozen=True):
    """A whole reply."""

    head: Head
    body: bytes


class Fetch:
    """A receiver that collects a reply of at most `limit` bytes; `reply` is done at its end."""

    def __init__(self, limit: int) -> None:
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.call: Call | None = None
        self._limit, self._size = limit, 0
        self._parts: list[bytes] = []
        self._head: Head | None = None

    def on_head(self, head: Head) -> None:
        self._head = head

    def on_data(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= self._limit:
            self._parts.append(data)
            return
        if self.call is not None:
            self.call.abort()
        self.on_lost(EngineError("The upstream's reply is too long."))

    def on_end(self) -> None:
        if not self.reply.done() and self._head is not None:
            self.reply.set_result(Reply(self._head, b"".join(self._parts)))

    def on_lost(self, error: ServeError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)


class Upstream:
    """Writes requests for one server, with our credentials, and sends them through its pool.

    Args:
        key: The bearer token, empty for none.
        proxied: Requests go through a proxy that wants whole URLs.
    """

    def __init__(self, pool: Pool, address: Address, key: str, headers: Mapping[str, str], *, proxied: bool) -> None:
        self.pool, self._address = pool, address
        own = {
            "host": address.authority,
            "user-agent": "fastchat-serve",
            "accept-encoding": "identity",
            **({"authorization": f"Bearer {key}"} if key else {}),
        }
        every = own | {name.lower(): value for name, value in headers.items()}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in every.items()).encode()
        self._origin = f"http://{address.authority}" if proxied else ""
        self._post_heads: dict[str, bytes] = {}

    def post(self, path: str, body: bytes, request_id: str) -> bytes:
        """A request with a JSON body to `path` below the base URL."""
        head = self._post_heads.get(path)
        if head is None:
            line = f"POST {self._origin}{self._address.path}{path} HTTP/1.1\r\n".encode()
            head = self._post_heads[path] = line + self._headers + b"content-type: application/json\r\n"
        shown = request_id.encode() if request_id.isascii() and request_id.isprintable() else b""
        return b"%sx-request-id: %s\r\ncontent-length: %d\r\n\r\n%s" % (head, shown, len(body), body)

    def get(self, path: str) -> bytes:
        """A request for `path`, which is absolute."""
        return f"GET {self._origin}{path} HTTP/1.1\r\n".encode() + self._headers + b"\r\n"

    async def fetch(self, request: bytes, limit: int) -> Reply:
        """The whole reply. Being cancelled closes its connection.

        Raises:
            ServeError: The upstream cannot be reached, or its reply is cut off or over `limit` bytes.
        """
        fetch = Fetch(limit)
        fetch.call = self.pool.submit(request, fetch)
        try:
            return await fetch.reply
        finally:
            fetch.call.abort()
            fetch.call = None  # it holds `fetch`
