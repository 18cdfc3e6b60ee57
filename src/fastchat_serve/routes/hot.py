"""Hot routes: plain ASGI inside Litestar's router, guards and error handlers.

Litestar's machinery for ordinary handlers costs half of a small request, so routes on the data path
read and write by themselves (`exchange.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from litestar import asgi
from litestar.exceptions import MethodNotAllowedException
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from fastchat_serve.routes.exchange import Exchange

__all__ = ["hot_post"]


def hot_post(path: str, handle: Callable[[Exchange], Awaitable[None]], opt: dict[str, Any]) -> ASGIRouteHandler:
    """A route that answers POST. `handle` may raise `ServeError` as long as nothing was sent."""

    @asgi(path, copy_scope=False, opt=opt)
    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":  # type: ignore[typeddict-item]
            raise MethodNotAllowedException(headers={"allow": "POST"})
        await handle(Exchange(scope, receive, send))

    return handler
