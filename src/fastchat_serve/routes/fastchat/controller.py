"""The routes of a FastChat controller.

Front ends are given this server's own address for every model, foreign ones included: what it takes to reach a worker
is nobody else's business, and limits, failover and metrics hold for them as for everyone.
"""

from __future__ import annotations

from litestar import get
from litestar.handlers import ASGIRouteHandler, HTTPRouteHandler

from fastchat_serve.fastchat.foreign import ForeignWorkers
from fastchat_serve.fastchat.served import is_served, models_served, status
from fastchat_serve.protocol import fastchat as wire
from fastchat_serve.routes.door import PUBLIC
from fastchat_serve.routes.fastchat.peers import Peers
from fastchat_serve.routes.fastchat.route import Call, with_body, without_body
from fastchat_serve.routes.openai.service import Service
from fastchat_serve.routes.openapi import documented

__all__ = ["controller_handlers"]


def controller_handlers(
    service: Service, foreign: ForeignWorkers, peers: Peers
) -> list[ASGIRouteHandler | HTTPRouteHandler]:
    """All of them."""
    registry = service.dispatcher.registry
    readers = peers.or_key

    async def register(asked: wire.RegisterWorker, call: Call) -> None:
        await foreign.register(asked, call.address)

    async def beat(asked: wire.HeartBeat, _: Call) -> wire.HeartBeatReply:
        return wire.HeartBeatReply(foreign.beat(asked.worker_name, asked.queue_length))

    async def models() -> wire.ModelNames:
        return wire.ModelNames(models_served(registry))

    async def multimodal() -> wire.ModelNames:
        return wire.ModelNames(tuple(name for name in models_served(registry) if name in foreign.multimodal))

    async def language() -> wire.ModelNames:
        return wire.ModelNames(tuple(name for name in models_served(registry) if name not in foreign.multimodal))

    async def address(asked: wire.ModelQuery, call: Call) -> wire.Address:
        return wire.Address(call.url if is_served(registry, asked.model or "") else "")

    async def together() -> wire.WorkerStatus:
        return status(registry)

    @get(
        "/test_connection",
        opt=PUBLIC | documented("Is a controller here?", "FastChat", str),
        guards=[readers],
        sync_to_thread=False,
        media_type="application/json",
    )
    def test_connection() -> bytes:
        return b'"success"'

    return [
        with_body("/register_worker", "Register a worker", wire.RegisterWorker, None, peers.only, register),
        with_body(
            "/receive_heart_beat", "Say that a worker lives", wire.HeartBeat, wire.HeartBeatReply, peers.only, beat
        ),
        without_body("/refresh_all_workers", "Look at all workers", None, readers, foreign.refresh),
        without_body("/list_models", "List the models", wire.ModelNames, readers, models),
        without_body("/list_multimodal_models", "List the models for images", wire.ModelNames, readers, multimodal),
        without_body("/list_language_models", "List the models for text only", wire.ModelNames, readers, language),
        with_body("/get_worker_address", "Where a model is served", wire.ModelQuery, wire.Address, readers, address),
        without_body("/worker_get_status", "All workers together", wire.WorkerStatus, readers, together),
        test_connection,
    ]
