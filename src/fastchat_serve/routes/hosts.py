"""Only answer to the names this server goes by.

A page of a foreign site can point its own host name at 127.0.0.1 and then talk to a local server as to
its own (DNS rebinding). The browser still sends the foreign name in ``Host``, so that is refused.
"""

from __future__ import annotations

from collections.abc import Iterable

from litestar.types import ASGIApp, Receive, Scope, Send

from fastchat_serve.errors import Forbidden
from fastchat_serve.routes.exchange import header

__all__ = ["HostCheck"]


class HostCheck:
    """ASGI middleware. Names are compared exactly, ports are not; forwarded hosts are not looked at."""

    def __init__(self, app: ASGIApp, allowed: Iterable[str]) -> None:
        self._app = app
        self._allowed = frozenset(name.lower().encode() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _name(header(scope, b"host")) not in self._allowed:
            raise Forbidden("This server does not go by that host name. The config's allowed_hosts says which it does.")
        await self._app(scope, receive, send)


def _name(host: bytes) -> bytes:
    """A Host header without its port; an IPv6 address without its brackets."""
    if host.startswith(b"["):
        return host[1:].partition(b"]")[0]
    return host.partition(b":")[0].lower()
