"""``/cluster/…`` for operators: drain, and load, unload, reload and rename models while the server runs.

What takes time is answered by events that tell how far it is; it goes on if nobody reads them. These routes need the
cluster's token, whatever API keys there are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import MappingProxyType
from typing import Any, Final

import anyio
import msgspec
from litestar import Response, asgi, delete, post
from litestar.handlers import ASGIRouteHandler, HTTPRouteHandler
from litestar.params import FromPath
from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec.structs import replace

from fastchat_serve.controller.operations import Operation, Operations
from fastchat_serve.protocol.cluster import Alias, Aliased, Draining, OperationReport, Target, WorkerReport
from fastchat_serve.routes.asgi import AsgiExchange
from fastchat_serve.routes.door import FOR_OPERATORS
from fastchat_serve.routes.errors import error_body
from fastchat_serve.routes.exchange import Exchange, decode
from fastchat_serve.routes.hot import require_post
from fastchat_serve.routes.openapi import documented
from fastchat_serve.routes.sse import EVENT_HEADERS, event
from fastchat_serve.worker.base import Worker

__all__ = ["lifecycle_handlers"]

LOOK_S: Final = 0.1
"""How often it is looked how far an operation is."""

SAY_S: Final = 10.0
"""After so long it is said again, so that nobody takes the connection for dead."""

_any_table = msgspec.json.Decoder(dict[str, Any])
_target = msgspec.json.Decoder(Target)
_alias = msgspec.json.Decoder(Alias)

Begin = Callable[[AsgiExchange], Awaitable[Operation]]


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

    drains_worker = documented("Drain and unload a worker", "operators", OperationReport, **_EVENTS)

    @post("/cluster/workers/{worker_id:str}/drain", status_code=200, opt=FOR_OPERATORS | drains_worker)
    async def drain_worker(worker_id: FromPath[str]) -> Response[None]:
        return _Told(operations, operations.start("drain", worker_id))

    drains = documented("Drain and end the process", "operators", Draining, method="POST", status=202)

    @post("/cluster/drain", status_code=202, opt=FOR_OPERATORS | drains, sync_to_thread=False)
    def drain_process() -> Draining:
        drain()
        return Draining(drain_s)

    aliases = documented("Give a model another name", "operators", Aliased, request=Alias, method="POST")

    @asgi("/cluster/aliases", copy_scope=False, opt=FOR_OPERATORS | aliases)
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

    def telling(path: str, about: str, request: Any, begin: Begin) -> ASGIRouteHandler:
        return _telling(
            operations, path, documented(about, "operators", OperationReport, request=request, **_EVENTS), begin
        )

    return [
        drain_process,
        drain_worker,
        telling("/cluster/models/load", "Load a model, by a table [[worker]]", dict[str, Any], load),
        telling("/cluster/models/unload", "Drain and unload a model", Target, unload),
        telling("/cluster/models/reload", "Load a model anew", Target, reload),
        alias,
        unalias,
    ]


_EVENTS: Final = MappingProxyType({"method": "POST", "media_type": "text/event-stream"})


def _telling(operations: Operations, path: str, opt: dict[str, Any], begin: Begin) -> ASGIRouteHandler:
    """A route that begins an operation, and tells how far it is until it is over."""

    @asgi(path, copy_scope=False, opt=FOR_OPERATORS | opt)
    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        require_post(scope)
        exchange = AsgiExchange(scope, receive, send)
        await _tell_until_over(exchange, operations, await begin(exchange))

    return handler


class _Told(Response[None]):
    """The same, for routes with parameters in their path: Litestar's ASGI handlers have none."""

    def __init__(self, operations: Operations, operation: Operation) -> None:
        super().__init__(None)
        self._operations, self._operation = operations, operation

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIApp:  # type: ignore[override]
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await _tell_until_over(AsgiExchange(scope, receive, send), self._operations, self._operation)

        return app


async def _tell_until_over(exchange: AsgiExchange, operations: Operations, operation: Operation) -> None:
    """Or until the client has gone."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_tell, exchange, operations, operation)
        await exchange.finished()
        tasks.cancel_scope.cancel()


async def _tell(exchange: Exchange, operations: Operations, operation: Operation) -> None:
    exchange.begin(200, EVENT_HEADERS)
    said: OperationReport | None = None
    said_at = 0.0
    while not operation.over.is_set():
        report, now = _report(operations, operation), anyio.current_time()
        if report != said or now - said_at >= SAY_S:
            said, said_at = report, now
            exchange.outlet.write(event(report))
        with anyio.move_on_after(LOOK_S):
            await operation.over.wait()
    if operation.error is not None:
        exchange.outlet.write(b"data: " + error_body(operation.error) + b"\n\n", last=True)
    else:
        exchange.outlet.write(event(replace(_report(operations, operation), done=True)), last=True)


def _report(operations: Operations, operation: Operation) -> OperationReport:
    return OperationReport(tuple([_of_worker(worker, gone=operations.gone(worker)) for worker in operation.workers]))


def _of_worker(worker: Worker, *, gone: bool) -> WorkerReport:
    load, progress = worker.load(), worker.progress
    return WorkerReport(
        id=worker.id,
        models=worker.names,
        state="gone" if gone else worker.state.value,
        stage=progress.stage,
        fraction=progress.fraction,
        running=load.running,
        waiting=load.waiting,
    )
