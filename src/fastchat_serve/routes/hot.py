"""Hot routes: plain ASGI inside Litestar's router, guards and error handlers.

Litestar's machinery for ordinary handlers costs half of a small request, so routes on the data path
read and write by themselves (`exchange.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from litestar.connection import ASGIConnection
from litestar.exceptions import MethodNotAllowedException
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from fastchat_serve.errors import ServeError
from fastchat_serve.routes.errors import reply_error
from fastchat_serve.routes.exchange import Exchange

__all__ = ["hot_post"]


class _HotHandler(ASGIRouteHandler):
    """Litestar gives each guard a copy of the handler, made for each request; here it is the handler itself."""

    async def authorize_connection(self, connection: ASGIConnection[Any, Any, Any, Any]) -> None:
        for guard in self.resolve_guards():
            await guard(connection, self)  # type: ignore[misc]  # they were made awaitable


def hot_post(path: str, handle: Callable[[Exchange], Awaitable[None]], opt: dict[str, Any]) -> ASGIRouteHandler:
    """A route that answers POST. `handle` may raise `ServeError` as long as nothing was sent."""

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":  # type: ignore[typeddict-item]
            raise MethodNotAllowedException(headers={"allow": "POST"})
        exchange = Exchange(scope, receive, send)
        try:
            await handle(exchange)
        except ServeError as error:
            reply_error(exchange, error)

    return _HotHandler(path, copy_scope=False, opt=opt)(handler)
