"""``/cluster/aliases`` for operators: other names for models, given and taken away while the server runs."""

from __future__ import annotations

import msgspec
from litestar import asgi, delete
from litestar.handlers import ASGIRouteHandler, HTTPRouteHandler
from litestar.params import FromPath
from litestar.types import Receive, Scope, Send

from fastchat_serve.controller.operations import Operations
from fastchat_serve.protocol.cluster import Alias, Aliased
from fastchat_serve.routes.asgi import AsgiExchange
from fastchat_serve.routes.door import FOR_OPERATORS
from fastchat_serve.routes.exchange import decode
from fastchat_serve.routes.hot import require_post
from fastchat_serve.routes.openapi import documented

__all__ = ["alias_handlers"]

_alias = msgspec.json.Decoder(Alias)


def alias_handlers(operations: Operations, max_body_bytes: int) -> list[ASGIRouteHandler | HTTPRouteHandler]:
    """The routes. They need the cluster's token, whatever API keys there are."""
    gives = documented("Give a model another name", "operators", Aliased, request=Alias, method="POST")

    @asgi("/cluster/aliases", copy_scope=False, opt=FOR_OPERATORS | gives)
    async def alias(scope: Scope, receive: Receive, send: Send) -> None:
        require_post(scope)
        exchange = AsgiExchange(scope, receive, send)
        wanted = decode(_alias, await exchange.body(max_body_bytes))
        workers = await operations.alias(wanted.name, wanted.model)
        called = Aliased(wanted.name, wanted.model, tuple(worker.id for worker in workers))
        exchange.reply_json(msgspec.json.encode(called))

    drops = documented("Take another name away", "operators", dict[str, str], method="DELETE")

    @delete("/cluster/aliases/{name:path}", status_code=200, opt=FOR_OPERATORS | drops)
    async def unalias(name: FromPath[str]) -> dict[str, str]:
        name = name.removeprefix("/")  # Litestar's; names may hold slashes
        await operations.unalias(name)
        return {"name": name}

    return [alias, unalias]
