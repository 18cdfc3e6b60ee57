"""The plain kind of FastChat's routes: a POST with a JSON body or none, and a JSON reply."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

import anyio
import msgspec
from litestar import asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from fastchat_serve.errors import ServeError
from fastchat_serve.routes.asgi import AsgiExchange
from fastchat_serve.routes.door import PUBLIC, Guard
from fastchat_serve.routes.exchange import Exchange, decode
from fastchat_serve.routes.fastchat.failures import reply_failure
from fastchat_serve.routes.hot import End, require_post
from fastchat_serve.routes.openapi import documented

__all__ = ["Call", "answering", "until_gone", "with_body", "without_body"]

Asked = TypeVar("Asked")
_encode = msgspec.json.Encoder().encode

MAX_BODY_BYTES = 1024 * 1024
"""Of what is no prompt."""


class Call(NamedTuple):
    """Who calls."""

    exchange: Exchange
    address: str
    url: str
    """At which this server was called."""


def without_body(
    path: str, summary: str, reply: Any, guard: Guard, answer: Callable[[], Awaitable[Any]]
) -> ASGIRouteHandler:
    """A route whose body, if there is one, is not read."""

    @asgi(path, copy_scope=False, guards=[guard], opt=_opt(summary, reply))
    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        require_post(scope)
        AsgiExchange(scope, receive, send).reply_json(_encode(await answer()))

    return handler


def with_body(
    path: str,
    summary: str,
    asked: type[Asked],
    reply: Any,
    guard: Guard,
    answer: Callable[[Asked, Call], Awaitable[Any]],
    limit_bytes: int = MAX_BODY_BYTES,
) -> ASGIRouteHandler:
    """A route with a body of type `asked`. `answer` is cancelled when the client leaves; it may raise `ServeError`."""
    decoder = msgspec.json.Decoder(asked)

    @asgi(path, copy_scope=False, guards=[guard], opt=_opt(summary, reply, request=asked))
    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        require_post(scope)
        exchange = AsgiExchange(scope, receive, send)
        try:
            wanted = decode(decoder, await exchange.body(limit_bytes))
        except ServeError as error:
            reply_failure(exchange, error)
            return
        call = Call(exchange, _address(scope), _url(scope))

        async def reply_it() -> None:
            try:
                said = await answer(wanted, call)
            except ServeError as error:
                reply_failure(exchange, error)
            else:
                exchange.reply_json(_encode(said))

        await until_gone(exchange, reply_it)

    return handler


def answering(
    path: str,
    *,
    begin: Callable[[AsgiExchange, bytes], Awaitable[End]],
    refuse: Callable[[Exchange, ServeError], None],
    limit_bytes: int,
    opt: dict[str, Any],
    guard: Guard | None = None,
) -> ASGIRouteHandler:
    """A route whose reply `begin` only begins. What that raises goes to `refuse`."""

    @asgi(path, copy_scope=False, guards=None if guard is None else [guard], opt=opt)
    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        require_post(scope)
        exchange = AsgiExchange(scope, receive, send)
        end: End | None = None

        async def begin_it() -> None:
            nonlocal end
            try:
                end = await begin(exchange, body)
            except ServeError as error:
                refuse(exchange, error)

        try:
            body = await exchange.body(limit_bytes)
        except ServeError as error:
            refuse(exchange, error)
            return
        try:
            await until_gone(exchange, begin_it)
        finally:
            if end is not None:
                end()

    return handler


async def until_gone(exchange: AsgiExchange, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """`work`, and then the reply, as long as somebody waits for it."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await exchange.finished()
        tasks.cancel_scope.cancel()


def _address(scope: Scope) -> str:
    client = scope["client"]
    return "" if client is None else client[0]


def _url(scope: Scope) -> str:
    """By the name that was used, which leads here from where the client is."""
    named = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    if not named:
        host, port = scope["server"] or ("", 0)
        named = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"{scope['scheme']}://{named}"


def _opt(summary: str, reply: Any, **more: Any) -> dict[str, Any]:
    return PUBLIC | documented(summary, "FastChat", reply, method="POST", **more)
