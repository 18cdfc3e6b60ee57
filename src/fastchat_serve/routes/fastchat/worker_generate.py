"""``/worker_generate_stream`` and ``/worker_generate``: how an answer begins. How it goes on is in `generation.py`."""

from __future__ import annotations

import msgspec
from litestar.handlers import ASGIRouteHandler

from fastchat_serve.engine import ChatPrompt
from fastchat_serve.errors import ServeError
from fastchat_serve.protocol import fastchat as wire
from fastchat_serve.routes.door import PUBLIC, Guard
from fastchat_serve.routes.exchange import Exchange, decode
from fastchat_serve.routes.fastchat.asked import awake, model_of
from fastchat_serve.routes.fastchat.failures import failure
from fastchat_serve.routes.fastchat.generation import Generation, generate_request
from fastchat_serve.routes.fastchat.route import answering
from fastchat_serve.routes.hot import End
from fastchat_serve.routes.metrics import Operation
from fastchat_serve.routes.openai.service import Service
from fastchat_serve.routes.openapi import documented

__all__ = ["generate_routes"]

_params = msgspec.json.Decoder(wire.GenerateParams)
_encode = msgspec.json.Encoder().encode


def generate_routes(service: Service, guard: Guard) -> list[ASGIRouteHandler]:
    """Both."""
    return [
        _route("/worker_generate_stream", "Continue a text, in messages that grow", service, guard, stream=True),
        _route("/worker_generate", "Continue a text", service, guard, stream=False),
    ]


def _route(path: str, summary: str, service: Service, guard: Guard, *, stream: bool) -> ASGIRouteHandler:
    async def begin(exchange: Exchange, body: bytes) -> End:
        params = decode(_params, body)
        model = model_of(service, params.model)
        await awake(service, model)
        generation = _generation(params, model, exchange, service, stream=stream)
        generation.start()
        return generation.close

    def refuse(exchange: Exchange, error: ServeError) -> None:
        exchange.reply_json(_encode(failure(error)) + (b"\0" if stream else b""))

    opt = PUBLIC | documented(summary, "FastChat", wire.Message, request=wire.GenerateParams, method="POST")
    limit_bytes = service.max_body_bytes
    return answering(path, begin=begin, refuse=refuse, limit_bytes=limit_bytes, opt=opt, guard=guard)


def _generation(
    params: wire.GenerateParams, model: str, exchange: Exchange, service: Service, *, stream: bool
) -> Generation:
    """What answers `params`, not started yet. Raises as `generate_request` does."""
    request = generate_request(params, exchange, service.limits)
    operation: Operation = "chat" if isinstance(request.prompt, ChatPrompt) else "text_completion"
    return Generation(
        exchange,
        service.metrics.begin(operation, model),
        service.dispatcher,
        model,
        request,
        prefix=params.prompt if params.echo is not False and not request.echo else "",
        stream=stream,
    )
