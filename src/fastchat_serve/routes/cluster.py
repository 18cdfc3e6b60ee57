"""``/cluster/…``: the controller's own view, for operators."""

from __future__ import annotations

from litestar import get
from litestar.handlers import HTTPRouteHandler

from fastchat_serve.controller.registry import Registry
from fastchat_serve.protocol.cluster import WorkerCard, WorkerList
from fastchat_serve.routes.door import FOR_OPERATORS_TOO
from fastchat_serve.routes.openapi import documented
from fastchat_serve.worker.base import Worker, WorkerState

__all__ = ["cluster_handlers"]


def cluster_handlers(registry: Registry) -> list[HTTPRouteHandler]:
    """The routes. They need a key like any other, or the cluster's token."""
    opt = FOR_OPERATORS_TOO | documented("List the workers", "operators", WorkerList)

    @get("/cluster/workers", opt=opt, sync_to_thread=False)
    def list_workers() -> WorkerList:
        return WorkerList(tuple(_card(worker) for worker in registry.workers))

    return [list_workers]


def _card(worker: Worker) -> WorkerCard:
    load = worker.load()
    info = worker.info if worker.state in (WorkerState.READY, WorkerState.DRAINING) else None
    return WorkerCard(
        id=worker.id,
        models=worker.names,
        adapters=worker.adapters,
        state=worker.state.value,
        reason=worker.reason,
        node=worker.node,
        address=worker.address,
        stage=worker.progress.stage,
        fraction=worker.progress.fraction,
        running=load.running,
        waiting=load.waiting,
        slots=load.slots,
        queue_limit=load.queue_limit,
        kv_used_fraction=load.engine.kv_used_fraction,
        context_length=info.context_length if info else None,
        dtype=info.dtype if info else "",
        device=info.device if info else "",
        capabilities=tuple(sorted(info.capabilities)) if info else (),
        notes=info.notes if info else (),
    )
