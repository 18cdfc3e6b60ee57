"""Hot routes: what generation requests take, at a fraction of what an ordinary route costs.

Such a request needs no task: its handler begins the reply and returns, an engine's steps write it, and what the
handler returned is called when the reply is complete or the client has gone. Our own server calls the handler
itself once it has the body (`cycle.HotCycle`). Everywhere else, other servers' and unusual spellings of a path
included, the same handler is driven through ASGI. It stands in Litestar's router, behind its guards and
in its OpenAPI document either way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from litestar import asgi
from litestar.exceptions import MethodNotAllowedException
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send
from msgspec import Struct

from fastchat_serve.errors import ServeError
from fastchat_serve.routes.asgi import AsgiExchange
from fastchat_serve.routes.errors import reply_error
from fastchat_serve.routes.exchange import Exchange

__all__ = ["End", "HotRoute", "require_post"]

End = Callable[[], None]
"""Called once, when the reply is complete or the client has gone."""


class HotRoute(Struct, frozen=True, kw_only=True):
    """A route that answers POST.

    `begin` gets the whole body. It may raise `ServeError` as long as it has sent nothing.
    """

    path: str
    limit_bytes: int
    begin: Callable[[Exchange, bytes], End]
    opt: dict[str, Any]

    def handler(self) -> ASGIRouteHandler:
        """For Litestar's router."""

        @asgi(self.path, copy_scope=False, opt=self.opt)
        async def handler(scope: Scope, receive: Receive, send: Send) -> None:
            require_post(scope)
            exchange = AsgiExchange(scope, receive, send)
            try:
                end = self.begin(exchange, await exchange.body(self.limit_bytes))
            except ServeError as error:
                reply_error(exchange, error)
                return
            try:
                await exchange.finished()
            finally:
                end()

        return handler


def require_post(scope: Scope) -> None:
    """Raises Litestar's error for any other method, which ASGI handlers have to see to by themselves."""
    if scope["method"] != "POST":  # type: ignore[typeddict-item]
        raise MethodNotAllowedException(headers={"allow": "POST"})
