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
from litestar.types import Scope

from fastchat_serve.errors import Unauthorized
from fastchat_serve.routes.exchange import header

__all__ = ["PUBLIC", "Guard", "Keys", "require_key", "tenant"]

PUBLIC = MappingProxyType({"public": True})
"""`opt` of a route that needs no key."""

_HASHED = "sha256:"
_TENANT = "tenant"

Guard = Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Awaitable[None]]


class Keys:
    """The accepted API keys, kept as SHA-256 only.

    Args:
        entries: Keys in plain, or as ``sha256:`` and 64 hexadecimal digits.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        digests = [
            bytes.fromhex(entry.removeprefix(_HASHED)) if entry.startswith(_HASHED) else _digest(entry.encode())
            for entry in entries
        ]
        self._tenants = {digest: f"key:{_digest(digest)[:8].hex()}" for digest in digests}

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def tenant(self, key: bytes) -> str | None:
        """The mark of whoever has `key`, which says nothing about it; None if it is not known here.

        It is compared with every key, whichever matches, so that time tells nothing.
        """
        digest = _digest(key)
        matches = [tenant for known, tenant in self._tenants.items() if hmac.compare_digest(digest, known)]
        return matches[0] if matches else None


def require_key(keys: Keys) -> Guard:
    """A Litestar guard, which also notes whose request it is. Without any keys the server is open."""

    async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        scope = connection.scope
        if not keys or handler.opt.get("public"):
            peer = scope["client"]
            scope["state"][_TENANT] = f"peer:{peer[0]}" if peer else ""
            return
        scheme, _, key = header(scope, b"authorization").partition(b" ")
        if scheme.lower() != b"bearer" or not key:
            raise Unauthorized("Send your API key in the header 'Authorization: Bearer KEY'.")
        known = keys.tenant(key.strip())
        if known is None:
            raise Unauthorized("This API key is not known here.")
        scope["state"][_TENANT] = known

    return guard


def tenant(scope: Scope) -> str:
    """Who sent a request that `require_key` let in: `GenerateRequest.tenant`."""
    known: str = scope["state"][_TENANT]
    return known


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
