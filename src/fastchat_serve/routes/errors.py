"""Every failure in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec
from litestar import Request
from litestar.exceptions import HTTPException

from fastchat_serve.errors import (
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    ServeError,
    UnsupportedMediaType,
)
from fastchat_serve.routes.exchange import Exchange, Header
from fastchat_serve.routes.response import IdentifiedResponse, scope_id

__all__ = ["EXCEPTION_HANDLERS", "UNEXPECTED", "error_body", "reply_error"]

_Request = Request[Any, Any, Any]
_API: Final = "/v1/"

logger = logging.getLogger(__name__)


UNEXPECTED = ServeError(
    "The server failed on this request. Its log says why, under the request's id.", code="internal_error"
)
"""What a client is told of anything that should not have happened; the log has the cause."""


def error_body(error: ServeError) -> bytes:
    """The JSON of `error`."""
    return msgspec.json.encode(error.to_openai())


def _error_headers(error: ServeError) -> list[Header]:
    """Headers that belong to `error`, beside content type and request id."""
    headers: list[Header] = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after_s)).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def reply_error(exchange: Exchange, error: ServeError) -> None:
    """A reply that is nothing but `error`."""
    exchange.reply_json(error_body(error), error.status, _error_headers(error))


def _render(_: _Request, error: ServeError, allow: str = "") -> IdentifiedResponse[bytes]:
    headers = {name.decode(): value.decode() for name, value in _error_headers(error)}
    if allow:
        headers["allow"] = allow
    return IdentifiedResponse(
        error_body(error), status_code=error.status, headers=headers, media_type="application/json"
    )


def _http_error(request: _Request, error: HTTPException) -> IdentifiedResponse[bytes]:
    """What Litestar raises by itself: unknown routes, wrong methods, bad parameters."""
    match error.status_code:
        case 404:
            ours: ServeError = NotFound(_no_route(request))
        case 405:
            allow = (error.headers or {}).get("allow", "")
            return _render(request, MethodNotAllowed(f"This route answers {allow} only."), allow)
        case 413:
            ours = PayloadTooLarge("The body is too long.")
        case 415:
            ours = UnsupportedMediaType("Send JSON, with the header 'Content-Type: application/json'.")
        case status if status < 500:
            ours = InvalidRequest("The request is not valid.")
        case _:
            return _unexpected(request, error)
    return _render(request, ours)


def _no_route(request: _Request) -> str:
    """Of a role that runs elsewhere, or of none."""
    path: str = request.scope["path"]
    if path.startswith(_API) and not any(route.path.startswith(_API) for route in request.app.routes):
        return "This process has no [api]: ask one that has. GET /schema lists the routes that exist here."
    return "There is no such route. GET /schema lists those that exist."


def _unexpected(request: _Request, error: Exception) -> IdentifiedResponse[bytes]:
    logger.error("Request %s failed unexpectedly.", scope_id(request.scope), exc_info=error)
    return _render(request, UNEXPECTED)


EXCEPTION_HANDLERS: Mapping[int | type[Exception], Callable[[_Request, Any], IdentifiedResponse[bytes]]] = (
    MappingProxyType(
        {
            ServeError: _render,
            HTTPException: _http_error,
            Exception: _unexpected,
        }
    )
)
