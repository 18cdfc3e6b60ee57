"""Who comes in: the one place where that is decided, for every route, denied by default.

As a guard it stands before all of Litestar's routes; our own server asks it directly for hot ones. A route
is open only if it says so: ``opt={"public": True}``. What changes the server is for operators, who have the
cluster's token; API keys are handed to clients.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from types import MappingProxyType
from typing import Any, Literal

from litestar.config.cors import CORSConfig
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler
from litestar.types import Scope

from fastchat_serve.errors import Forbidden, shutting_down
from fastchat_serve.routes.auth import Keys, Token
from fastchat_serve.routes.exchange import Header, header
from fastchat_serve.routes.hosts import Hosts

__all__ = ["FOR_OPERATORS", "FOR_OPERATORS_TOO", "PUBLIC", "Door", "Guard", "tenant"]

PUBLIC = MappingProxyType({"public": True})
"""`opt` of a route that needs no key."""
FOR_OPERATORS = MappingProxyType({"operators": "only"})
"""`opt` of a route that needs the cluster's token."""
FOR_OPERATORS_TOO = MappingProxyType({"operators": "too"})
"""`opt` of a route that needs either."""

_TENANT = "tenant"

Guard = Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Awaitable[None]]


class Door:
    """See the module.

    Args:
        keys: The accepted API keys. Without any the server is open.
        hosts: The names this server goes by; None: all.
        cors: Which pages of other origins may read replies; None: none.
        token: The cluster's, which operators have. Without one there are none.
    """

    def __init__(
        self, keys: Keys, hosts: Hosts | None = None, cors: CORSConfig | None = None, token: Token | None = None
    ) -> None:
        self._keys, self._hosts, self._cors = keys, hosts, cors
        self._token = token or Token(())
        self.closed = False
        """No work is taken any more. What is only read can still be read."""

    def admit(
        self,
        headers: Iterable[Header],
        client: tuple[str, int] | None,
        *,
        public: bool = False,
        reads: bool = False,
        operators: Literal["only", "too"] | None = None,
    ) -> str:
        """Let a request in, and say whose it is: `GenerateRequest.tenant`.

        Raises:
            Forbidden: It is for a server of another name, or for operators.
            Unauthorized: It has no key, or one that is not known.
            Unavailable: It is closed, and there is work to do for it.
        """
        if self._hosts is not None:
            self._hosts.require(header(headers, b"host"))
        shown = header(headers, b"authorization")
        if operators == "only":
            whose = self._require_operator(shown)
        elif operators == "too" and (operator := self._token.holder(shown)) is not None:
            whose = operator
        else:
            whose = "" if public or not self._keys else self._keys.require(shown)
        if self.closed and not reads:
            raise shutting_down()
        if whose:
            return whose
        return f"peer:{client[0]}" if client else ""

    def _require_operator(self, shown: bytes) -> str:
        """Raises `Forbidden` to clients, and to all where there are no operators; `Unauthorized` to strangers."""
        if self._token:
            if self._token.holder(shown) is None and self._keys.holder(shown) is not None:
                raise Forbidden("This is for operators: an API key does not suffice, send the cluster's token instead.")
            return self._token.require(shown)
        if self._keys:
            self._keys.require(shown)
        raise Forbidden(
            "This is for operators, who show the cluster's token, and this server has none: "
            "set cluster.token in its config, or start it with --set cluster.token=SECRET."
        )

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
            scope["state"][_TENANT] = self.admit(
                scope["headers"],
                scope["client"],
                public=bool(handler.opt.get("public")),
                reads=scope.get("method") == "GET",
                operators=handler.opt.get("operators"),
            )

        return guard


def tenant(scope: Scope) -> str:
    """Whose request it is that the guard let in."""
    known: str = scope["state"][_TENANT]
    return known
