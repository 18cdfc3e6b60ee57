"""Litestar's response, with the request's id on it as on every reply of the hot routes."""

from __future__ import annotations

from typing import Any, TypeVar

from litestar import Request, Response
from litestar.response.base import ASGIResponse
from litestar.types import Scope

from fastchat_serve.routes.exchange import request_id

__all__ = ["IdentifiedResponse", "scope_id"]

T = TypeVar("T")


class IdentifiedResponse(Response[T]):
    """The application's default, so that handlers that return plain values have it too."""

    def to_asgi_response(self, app: Any, request: Request[Any, Any, Any], **options: Any) -> ASGIResponse:
        self.set_header("x-request-id", scope_id(request.scope))
        return super().to_asgi_response(app, request, **options)


def scope_id(scope: Scope) -> str:
    """The request's id; the same for all of a request."""
    state: dict[str, Any] = scope.setdefault("state", {})
    if "request_id" not in state:
        state["request_id"] = request_id(scope["headers"])
    known: str = state["request_id"]
    return known
