"""The OpenAPI document (https://spec.openapis.org/oas/v3.1.0), at ``GET /schema``.

Each handler carries a `Documented` in its ``opt``, and msgspec, which decodes and encodes the bodies,
writes their schemas: so the document says exactly what is accepted. (Litestar's own generator reads
handler signatures, which hot routes do not have.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from litestar import Litestar, Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute
from msgspec import Struct

from fastchat_serve import __version__
from fastchat_serve.protocol.openai import ErrorEnvelope
from fastchat_serve.routes.response import IdentifiedResponse

__all__ = ["Documented", "documented", "schema_handler"]

_KEY = "documented"
_REFERENCE = "#/components/schemas/{name}"


class Documented(Struct, frozen=True):
    """What the document says of one route.

    `request`, `reply` and `events` are types: of the JSON body, of the JSON reply, and of the data of a
    streamed event. `unavailable` is the reply's type under status 503, where that is no error.
    """

    summary: str
    tag: str
    reply: Any
    request: Any = None
    events: Any = None
    unavailable: Any = None
    method: str = "GET"
    media_type: str = "application/json"
    status: int = 200

    @property
    def types(self) -> tuple[Any, ...]:
        """All that are set."""
        return tuple(kind for kind in (self.reply, self.request, self.events, self.unavailable) if kind is not None)


def documented(summary: str, tag: str, reply: Any, **more: Any) -> dict[str, Documented]:
    """For a handler's ``opt``."""
    return {_KEY: Documented(summary, tag, reply, **more)}


def schema_handler() -> HTTPRouteHandler:
    """``GET /schema``. Plain JSON: a page that shows it would load scripts from elsewhere."""

    @get("/schema", opt=documented("This document", "operators", dict[str, Any]), sync_to_thread=False)
    def schema(request: Request[Any, Any, Any]) -> IdentifiedResponse[bytes]:
        return IdentifiedResponse(msgspec.json.encode(_document(request.app)), media_type="application/json")

    return schema


def _document(app: Litestar) -> dict[str, Any]:
    routes = list(_documented_routes(app))
    kinds = [ErrorEnvelope, *sorted({kind for _, said, _ in routes for kind in said.types}, key=str)]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
    schema_of = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for path, said, public in routes:
        operation = _operation(path, said, schema_of)
        if public:
            operation["security"] = []
        paths.setdefault(path, {})[said.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "fastchat-serve", "version": __version__},
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _documented_routes(app: Litestar) -> Iterator[tuple[str, Documented, bool]]:
    """Path, what is said of it, and whether it needs no key."""
    for route in app.routes:
        handlers: Any = route.route_handlers if isinstance(route, HTTPRoute) else [route.route_handler]
        for handler in handlers:
            if _KEY in handler.opt:
                yield route.path_format, handler.opt[_KEY], bool(handler.opt.get("public"))


def _operation(path: str, said: Documented, schema_of: dict[Any, Any]) -> dict[str, Any]:
    good = {said.media_type: {"schema": schema_of[said.reply]}}
    if said.events is not None:
        good["text/event-stream"] = {"schema": schema_of[said.events]}
    operation: dict[str, Any] = {
        "summary": said.summary,
        "operationId": f"{said.method.lower()}{path}".replace("/", "_").replace("{", "").replace("}", ""),
        "tags": [said.tag],
        "responses": {
            str(said.status): {"description": "Success", "content": good},
            "default": {
                "description": "Failure",
                "content": {"application/json": {"schema": schema_of[ErrorEnvelope]}},
            },
        },
    }
    if said.unavailable is not None:
        content = {"application/json": {"schema": schema_of[said.unavailable]}}
        operation["responses"]["503"] = {"description": "Not now", "content": content}
    if said.request is not None:
        body = {"application/json": {"schema": schema_of[said.request]}}
        operation["requestBody"] = {"required": True, "content": body}
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    return operation
