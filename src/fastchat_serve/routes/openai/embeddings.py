"""``POST /v1/embeddings``."""

from __future__ import annotations

import base64
import sys
from array import array

import anyio
import msgspec
from litestar import asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from fastchat_serve.engine import Embeddings, EmbedRequest, Usage
from fastchat_serve.errors import InvalidRequest, ServeError, Unsupported
from fastchat_serve.protocol import openai as wire
from fastchat_serve.routes.asgi import AsgiExchange
from fastchat_serve.routes.exchange import decode
from fastchat_serve.routes.hot import require_post
from fastchat_serve.routes.openai.completions import prompts_of
from fastchat_serve.routes.openai.service import Service
from fastchat_serve.routes.openapi import documented

__all__ = ["embeddings_route", "floats"]

_decoder = msgspec.json.Decoder(wire.EmbeddingRequest)
_encode = msgspec.json.Encoder().encode


def embeddings_route(service: Service) -> ASGIRouteHandler:
    """The route, bound to what it serves from."""

    opt = documented("Embed texts", "embeddings", wire.EmbeddingList, request=wire.EmbeddingRequest, method="POST")

    @asgi("/v1/embeddings", copy_scope=False, opt=opt)
    async def embeddings(scope: Scope, receive: Receive, send: Send) -> None:
        require_post(scope)
        exchange = AsgiExchange(scope, receive, send)
        request = decode(_decoder, await exchange.body(service.max_body_bytes))
        if not service.waking.must_wait(request.model):
            service.dispatcher.an_able(request.model)  # an unknown model is the first thing to say
        prompts = prompts_of(request.input, service.limits.max_prompts, "input")
        wanted = EmbedRequest(
            id=f"embd-{exchange.unique_id}",
            inputs=tuple(prompts),
            truncate=bool(request.truncate),
            tenant=exchange.tenant,
        )
        observation = service.metrics.begin("embeddings", request.model)
        failed: ServeError | None = None
        async with anyio.create_task_group() as tasks:

            async def embed() -> None:
                nonlocal failed
                try:
                    await service.waking.wake(request.model)
                    found = await service.dispatcher.embed(request.model, wanted)
                    exchange.reply_json(_body(request, found))
                    observation.finish(Usage(found.prompt_tokens, 0))
                except ServeError as error:
                    failed = error
                    tasks.cancel_scope.cancel()

            tasks.start_soon(embed)
            await exchange.finished()
            tasks.cancel_scope.cancel()
        observation.finish(None, failed, left=failed is None)
        if failed is not None:
            raise failed

    return embeddings


def _body(request: wire.EmbeddingRequest, found: Embeddings) -> bytes:
    if request.dimensions is not None and request.dimensions != found.dimensions:
        raise Unsupported(
            f"Model {request.model!r} makes vectors of {found.dimensions} dimensions, no others.", param="dimensions"
        )
    size = found.dimensions * 4
    if not size or len(found.data) % size:
        raise InvalidRequest("This model made no vectors.", param="model")
    rows = (found.data[start : start + size] for start in range(0, len(found.data), size))
    as_base64 = request.encoding_format == "base64"
    items = [
        wire.EmbeddingItem(index, base64.b64encode(row).decode() if as_base64 else floats(row))
        for index, row in enumerate(rows)
    ]
    usage = wire.EmbeddingUsage(found.prompt_tokens, found.prompt_tokens)
    return _encode(wire.EmbeddingList(items, request.model, usage))


def floats(row: bytes) -> list[float]:
    """float32, little-endian, as numbers."""
    values = array("f", row)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
