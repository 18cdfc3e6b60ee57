"""``GET /cluster/decisions/{request_id}``: why a request went where it went, for operators."""

from __future__ import annotations

from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from fastchat_serve.controller.dispatcher import Dispatcher
from fastchat_serve.controller.explain import explain
from fastchat_serve.errors import NotFound
from fastchat_serve.protocol.decisions import DecisionList
from fastchat_serve.routes.door import FOR_OPERATORS_TOO
from fastchat_serve.routes.openapi import documented

__all__ = ["decision_handlers"]


def decision_handlers(dispatcher: Dispatcher) -> list[HTTPRouteHandler]:
    """The route. It needs a key like any other, or the cluster's token."""

    @get(
        "/cluster/decisions/{request_id:path}",
        opt=FOR_OPERATORS_TOO | documented("Explain where a request went", "operators", DecisionList),
        sync_to_thread=False,
    )
    def explain_request(request_id: FromPath[str]) -> DecisionList:
        wanted = request_id.removeprefix("/")  # Litestar leaves it there, and ids may hold slashes
        found = dispatcher.decisions.of(wanted)
        if not found:
            raise NotFound(f"Nothing is remembered here of a request {wanted!r}. Ask the API process that answered it.")
        return DecisionList(tuple(explain(decision, dispatcher.registry) for decision in found))

    return [explain_request]
