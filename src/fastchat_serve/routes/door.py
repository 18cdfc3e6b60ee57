"""Who comes in: the one place where that is decided, for every route, denied by default.

As a guard it stands before all of Litestar's routes; our own server asks it directly for hot ones. A route
is open only if it says so: ``opt={"public": True}``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from types import MappingProxyType
from typing import Any

from litestar.config.cors import CORSConfig
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler
from litestar.types import Scope

from fastchat_serve.errors import Unavailable
from fastchat_serve.routes.auth import Keys
from fastchat_serve.routes.exchange import Header, header
from fastchat_serve.routes.hosts import Hosts

__all__ = ["PUBLIC", "Door", "tenant"]

PUBLIC = MappingProxyType({"public": True})
"""`opt` of a route that needs no key."""

_TENANT = "tenant"

Guard = Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Awaitable[None]]


class Door:
    """See the module.

    Args:
        keys: The accepted API keys. Without any the server is open.
        hosts: The names this server goes by; None: all.
        cors: Which pages of other origins may read replies; None: none.
    """

    def __init__(self, keys: Keys, hosts: Hosts | None = None, cors: CORSConfig | None = None) -> None:
        self._keys, self._hosts, self._cors = keys, hosts, cors
        self.closed = False
        """No work is taken any more. What is only read can still be read."""

    def admit(
        self,
        headers: Iterable[Header],
        client: tuple[str, int] | None,
        *,
        public: bool = False,
        reads: bool = False,
    ) -> str:
        """Let a request in, and say whose it is: `GenerateRequest.tenant`.

        Raises:
            Forbidden: It is for a server of another name.
            Unauthorized: It has no key, or one that is not known.
            Unavailable: It is closed, and there is work to do for it.
        """
        if self._hosts is not None:
            self._hosts.require(header(headers, b"host"))
        whose = "" if public or not self._keys else self._keys.require(header(headers, b"authorization"))
        if self.closed and not reads:
            raise Unavailable("The server is shutting down.", code="shutting_down", retry_after_s=1.0)
        if whose:
            return whose
        return f"peer:{client[0]}" if client else ""

    def page_headers(self, headers: Iterable[Header]) -> tuple[Header, ...]:
        """What a reply has to say so that the page that asked may read it; Litestar adds it to its own replies."""
        if self._cors is None or not (origin := header(headers, b"origin")):
            return ()
        said = dict(self._cors.simple_headers)
        if not self._cors.is_allow_all_origins:
            if not self._cors.is_origin_allowed(origin.decode("latin-1")):
                return ()
            said |= {"Access-Control-Allow-Origin": origin.decode("latin-1"), "Vary": "Origin"}
        return tuple((name.lower().encode(), value.encode("latin-1")) for name, value in said.items())

    @property
    def guard(self) -> Guard:
        """For Litestar."""

        async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
            scope = connection.scope
            public = bool(handler.opt.get("public"))
            reads = scope.get("method") == "GET"
            scope["state"][_TENANT] = self.admit(scope["headers"], scope["client"], public=public, reads=reads)

        return guard


def tenant(scope: Scope) -> str:
    """Whose request it is that the guard let in."""
    known: str = scope["state"][_TENANT]
    return known
