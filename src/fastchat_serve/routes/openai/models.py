"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from __future__ import annotations

from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from msgspec import UNSET

from fastchat_serve.controller.registry import Registry
from fastchat_serve.protocol.openai import ModelCard, ModelList
from fastchat_serve.routes.openapi import documented
from fastchat_serve.worker.base import WorkerState

__all__ = ["model_handlers"]


def model_handlers(registry: Registry) -> list[HTTPRouteHandler]:
    """The routes. Reading the list never changes it."""

    def card(name: str) -> ModelCard:
        contexts = [
            worker.info.context_length for worker in registry.serving(name) if worker.state is WorkerState.READY
        ]
        return ModelCard(name, registry.since(name), max_model_len=min(contexts) if contexts else UNSET)

    @get("/v1/models", opt=documented("List the models", "models", ModelList), sync_to_thread=False)
    def list_models() -> ModelList:
        return ModelList(tuple(card(name) for name in registry.models))

    @get("/v1/models/{model:path}", opt=documented("Describe a model", "models", ModelCard), sync_to_thread=False)
    def get_model(model: FromPath[str]) -> ModelCard:
        # Litestar hands a path parameter over with its leading slash; model names may hold slashes.
        name = model.removeprefix("/")
        if not registry.serving(name):
            raise registry.missing(name)
        return card(name)

    return [list_models, get_model]
