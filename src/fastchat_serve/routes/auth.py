"""Who may call: API keys, compared in constant time, denied by default.

`require_key` guards the whole application. A route is open only if it says so: ``opt={"public": True}``.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable
from types import MappingProxyType
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from fastchat_serve.errors import Unauthorized
from fastchat_serve.routes.exchange import header

__all__ = ["PUBLIC", "Keys", "require_key"]

PUBLIC = MappingProxyType({"public": True})
"""`opt` of a route that needs no key."""

_HASHED = "sha256:"

Guard = Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Awaitable[None]]


class Keys:
    """The accepted API keys, kept as SHA-256 only.

    Args:
        entries: Keys in plain, or as ``sha256:`` and 64 hexadecimal digits.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._digests = tuple(
            bytes.fromhex(entry.removeprefix(_HASHED)) if entry.startswith(_HASHED) else _digest(entry.encode())
            for entry in entries
        )

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, key: bytes) -> bool:
        """Compared with every key, whichever matches, so that time tells nothing."""
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)


def require_key(keys: Keys) -> Guard:
    """A Litestar guard. Without any keys the server is open."""

    async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        if not keys or handler.opt.get("public"):
            return
        scheme, _, key = header(connection.scope, b"authorization").partition(b" ")
        if scheme.lower() != b"bearer" or not key:
            raise Unauthorized("Send your API key in the header 'Authorization: Bearer KEY'.")
        if not keys.accept(key.strip()):
            raise Unauthorized("This API key is not known here.")

    return guard


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
