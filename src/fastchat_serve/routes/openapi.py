"""The OpenAPI document (https://spec.openapis.org/oas/v3.1.0), at ``GET /schema``.

Each handler carries a `Documented` in its ``opt``, and msgspec, which decodes and encodes the bodies,
writes their schemas: so the document says exactly what is accepted. (Litestar's own generator reads
handler signatures, which hot routes do not have.)
"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Litestar, Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute
from msgspec import Struct

from fastchat_serve import __version__
from fastchat_serve.protocol.openai import ErrorEnvelope

__all__ = ["Documented", "documented", "schema_handler"]

_KEY = "documented"
_REFERENCE = "#/components/schemas/{name}"


class Documented(Struct, frozen=True):
    """What the document says of one route.

    `request`, `reply` and `events` are types: of the JSON body, of the JSON reply, and of the data of a
    streamed event.
    """

    summary: str
    tag: str
    reply: Any
    request: Any = None
    events: Any = None
    method: str = "GET"


def documented(summary: str, tag: str, reply: Any, **more: Any) -> dict[str, Documented]:
    """For a handler's ``opt``."""
    return {_KEY: Documented(summary, tag, reply, **more)}


def schema_handler() -> HTTPRouteHandler:
    """``GET /schema``. Plain JSON: a page that shows it would load scripts from elsewhere."""

    @get("/schema", opt=documented("This document", "operators", dict[str, Any]), sync_to_thread=False)
    def schema(request: Request[Any, Any, Any]) -> Response[bytes]:
        return Response(msgspec.json.encode(_document(request.app)), media_type="application/json")

    return schema


def _document(app: Litestar) -> dict[str, Any]:
    routes = [(route.path_format, said) for route in app.routes for said in _said_of(route)]
    types = {kind for _, said in routes for kind in (said.reply, said.request, said.events) if kind is not None}
    kinds = [ErrorEnvelope, *sorted(types, key=str)]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
    schema_of = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for path, said in routes:
        paths.setdefault(path, {})[said.method.lower()] = _operation(path, said, schema_of)
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


def _said_of(route: Any) -> list[Documented]:
    handlers = route.route_handlers if isinstance(route, HTTPRoute) else [route.route_handler]
    return [handler.opt[_KEY] for handler in handlers if _KEY in handler.opt]


def _operation(path: str, said: Documented, schema_of: dict[Any, Any]) -> dict[str, Any]:
    good = {"application/json": {"schema": schema_of[said.reply]}}
    if said.events is not None:
        good["text/event-stream"] = {"schema": schema_of[said.events]}
    operation: dict[str, Any] = {
        "summary": said.summary,
        "operationId": f"{said.method.lower()}{path}".replace("/", "_").replace("{", "").replace("}", ""),
        "tags": [said.tag],
        "responses": {
            "200": {"description": "Success", "content": good},
            "default": {
                "description": "Failure",
                "content": {"application/json": {"schema": schema_of[ErrorEnvelope]}},
            },
        },
    }
    if said.request is not None:
        body = {"application/json": {"schema": schema_of[said.request]}}
        operation["requestBody"] = {"required": True, "content": body}
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    return operation
