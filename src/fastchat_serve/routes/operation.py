"""An operation as a reply: events that tell how far it is, until it is over. It goes on if nobody reads them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
from litestar import Response, asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec.structs import replace

from fastchat_serve.controller.operations import Operation, Operations
from fastchat_serve.protocol.cluster import OperationReport, WorkerReport
from fastchat_serve.routes.asgi import AsgiExchange
from fastchat_serve.routes.door import FOR_OPERATORS
from fastchat_serve.routes.errors import error_body
from fastchat_serve.routes.exchange import Exchange
from fastchat_serve.routes.hot import require_post
from fastchat_serve.routes.openapi import documented
from fastchat_serve.routes.sse import EVENT_HEADERS, event
from fastchat_serve.worker.base import Worker

__all__ = ["OperationReply", "operation_opt", "operation_route"]

LOOK_S: Final = 0.1
"""How often it is looked how far an operation is."""

SAY_S: Final = 10.0
"""After so long it is said again, so that nobody takes the connection for dead."""

Begin = Callable[[AsgiExchange], Awaitable[Operation]]


def operation_opt(about: str, request: Any = None) -> dict[str, Any]:
    """The ``opt`` of a route that begins an operation. `request`: the type of its body, if it has one."""
    streamed = {"method": "POST", "media_type": "text/event-stream"}
    return FOR_OPERATORS | documented(about, "operators", OperationReport, request=request, **streamed)


def operation_route(operations: Operations, path: str, about: str, request: Any, begin: Begin) -> ASGIRouteHandler:
    """A route that begins an operation, and tells how far it is until it is over."""

    @asgi(path, copy_scope=False, opt=operation_opt(about, request))
    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        require_post(scope)
        exchange = AsgiExchange(scope, receive, send)
        await _tell_until_over(exchange, operations, await begin(exchange))

    return handler


class OperationReply(Response[None]):
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
