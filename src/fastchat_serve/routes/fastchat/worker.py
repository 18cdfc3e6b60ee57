"""The routes of a FastChat worker, for all models that are served here: nested controllers need no other."""

from __future__ import annotations

from litestar.handlers import ASGIRouteHandler

from fastchat_serve.routes.fastchat.peers import Peers
from fastchat_serve.routes.fastchat.worker_embeddings import embeddings_route
from fastchat_serve.routes.fastchat.worker_facts import fact_routes
from fastchat_serve.routes.fastchat.worker_generate import generate_routes
from fastchat_serve.routes.openai.service import Service

__all__ = ["worker_handlers"]


def worker_handlers(service: Service, peers: Peers) -> list[ASGIRouteHandler]:
    """All but ``/worker_get_status``, which is the controller's as well."""
    guard = peers.or_key
    return [*generate_routes(service, guard), *fact_routes(service, guard), embeddings_route(service, guard)]
