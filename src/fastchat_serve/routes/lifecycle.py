"""``/cluster/…`` for operators: drain, and load, unload and reload models while the server runs.

What takes time is answered by the events of `operation.py`. These routes need the cluster's token, whatever API keys
there are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from litestar import Response, post
from litestar.handlers import ASGIRouteHandler, HTTPRouteHandler
from litestar.params import FromPath

from fastchat_serve.controller.operations import Operation, Operations
from fastchat_serve.protocol.cluster import Draining, Target
from fastchat_serve.routes.asgi import AsgiExchange
from fastchat_serve.routes.door import FOR_OPERATORS
from fastchat_serve.routes.exchange import decode
from fastchat_serve.routes.openapi import documented
from fastchat_serve.routes.operation import OperationReply, operation_opt, operation_route

__all__ = ["lifecycle_handlers"]

_any_table = msgspec.json.Decoder(dict[str, Any])
_target = msgspec.json.Decoder(Target)


def lifecycle_handlers(
    operations: Operations, drain: Callable[[], None], *, drain_s: float, max_body_bytes: int
) -> list[ASGIRouteHandler | HTTPRouteHandler]:
    """The routes.

    Args:
        drain: Has the whole process drain and end.
        drain_s: How long accepted work has for that.
    """

    async def load(exchange: AsgiExchange) -> Operation:
        table: dict[str, Any] = decode(_any_table, await exchange.body(max_body_bytes))
        return await operations.load(table, exchange.asked("beside"))

    async def unload(exchange: AsgiExchange) -> Operation:
        return operations.start("unload", decode(_target, await exchange.body(max_body_bytes)).name)

    async def reload(exchange: AsgiExchange) -> Operation:
        return operations.start("reload", decode(_target, await exchange.body(max_body_bytes)).name)

    drains_worker = operation_opt("Drain and unload a worker")

    @post("/cluster/workers/{worker_id:str}/drain", status_code=200, opt=drains_worker)
    async def drain_worker(worker_id: FromPath[str]) -> Response[None]:
        return OperationReply(operations, operations.start("drain", worker_id))

    drains = documented("Drain and end the process", "operators", Draining, method="POST", status=202)

    @post("/cluster/drain", status_code=202, opt=FOR_OPERATORS | drains, sync_to_thread=False)
    def drain_process() -> Draining:
        drain()
        return Draining(drain_s)

    route = partial(operation_route, operations)
    return [
        drain_process,
        drain_worker,
        route("/cluster/models/load", "Load a model, by a table [[worker]]", dict[str, Any], load),
        route("/cluster/models/unload", "Drain and unload a model", Target, unload),
        route("/cluster/models/reload", "Load a model anew", Target, reload),
    ]
