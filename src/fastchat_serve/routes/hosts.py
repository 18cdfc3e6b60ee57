"""Only answer to the names this server goes by.

A page of a foreign site can point its own host name at 127.0.0.1 and then talk to a local server as to
its own (DNS rebinding). The browser still sends the foreign name in ``Host``, so that is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from fastchat_serve.errors import Forbidden
from fastchat_serve.routes.auth import Guard
from fastchat_serve.routes.exchange import header

__all__ = ["require_host"]

_HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]++)\]|([^:\[\]]++))(?::[0-9]{0,5})?")


def require_host(allowed: Iterable[str]) -> Guard:
    """A Litestar guard. Names are compared exactly, ports are not; forwarded hosts are not looked at."""
    names = frozenset(name.lower().encode() for name in allowed)

    async def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        if _name(header(connection.scope, b"host")) not in names:
            raise Forbidden("This server does not go by that host name. The config's allowed_hosts says which it does.")

    return guard


def _name(host: bytes) -> bytes:
    """A Host header without its port; an IPv6 address without its brackets. Empty if it is no such thing."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found is not None else b""
