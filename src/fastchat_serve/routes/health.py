"""``/health``: this process is alive. ``/ready``: it takes requests for all its models, and its loop turns."""

from __future__ import annotations

from collections.abc import Callable

from litestar import get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from fastchat_serve.controller.registry import Registry
from fastchat_serve.routes.door import PUBLIC
from fastchat_serve.routes.openapi import documented
from fastchat_serve.routes.response import IdentifiedResponse

__all__ = ["health_handlers"]


class Health(Struct, frozen=True):
    status: str


class Readiness(Struct, frozen=True, omit_defaults=True):
    """`models`: for each, the states of its workers."""

    ready: bool
    models: dict[str, tuple[str, ...]]
    reason: str = ""
    """What is wrong besides."""


def health_handlers(
    registry: Registry, is_ready: Callable[[], bool], complaint: Callable[[], str]
) -> list[HTTPRouteHandler]:
    """Both are open: they tell no secret, and whoever asks them has no key.

    Args:
        complaint: What is wrong besides the models; empty if nothing is.
    """

    @get("/health", opt=PUBLIC | documented("Is the process alive?", "operators", Health), sync_to_thread=False)
    def health() -> Health:
        return Health("ok")

    about_ready = documented("Are all models served?", "operators", Readiness, unavailable=Readiness)

    @get("/ready", opt=PUBLIC | about_ready, sync_to_thread=False)
    def ready() -> IdentifiedResponse[Readiness]:
        models = {name: tuple(worker.state.value for worker in registry.serving(name)) for name in registry.models}
        said = Readiness(is_ready(), models, complaint())
        return IdentifiedResponse(said, status_code=200 if said.ready else 503)

    return [health, ready]
