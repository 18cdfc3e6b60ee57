"""``/worker_get_embeddings``."""

from __future__ import annotations

import base64

from litestar.handlers import ASGIRouteHandler

from fastchat_serve.engine import Embeddings, EmbedRequest, TextPrompt, Usage
from fastchat_serve.errors import InvalidRequest, ServeError
from fastchat_serve.protocol import fastchat as wire
from fastchat_serve.routes.door import Guard
from fastchat_serve.routes.exchange import Exchange
from fastchat_serve.routes.fastchat.asked import awake, model_of
from fastchat_serve.routes.fastchat.failures import failure
from fastchat_serve.routes.fastchat.route import Call, with_body
from fastchat_serve.routes.openai.embeddings import floats
from fastchat_serve.routes.openai.service import Service

__all__ = ["embeddings_route"]


def embeddings_route(service: Service, guard: Guard) -> ASGIRouteHandler:
    """The route. What is refused has status 200, as an answer has: the reply's own number says that it is none."""

    async def embed(asked: wire.EmbedParams, call: Call) -> wire.EmbedReply | wire.Failure:
        try:
            model = model_of(service, asked.model)
            request = _request(asked, call.exchange, service.limits.max_prompts)
            await awake(service, model)
            return _reply(await _embeddings(service, model, request), as_base64=asked.encoding_format == "base64")
        except ServeError as error:
            return failure(error)

    return with_body(
        "/worker_get_embeddings",
        "Embed texts",
        wire.EmbedParams,
        wire.EmbedReply,
        guard,
        embed,
        service.max_body_bytes,
    )


def _request(asked: wire.EmbedParams, exchange: Exchange, most: int) -> EmbedRequest:
    texts = (asked.input,) if isinstance(asked.input, str) else asked.input
    if not texts or len(texts) > most:
        raise InvalidRequest(f"input has {len(texts)} texts; from 1 to {most} are taken.", param="input")
    return EmbedRequest(
        id=f"fastchat-{exchange.unique_id}", inputs=tuple(map(TextPrompt, texts)), tenant=exchange.tenant
    )


async def _embeddings(service: Service, model: str, request: EmbedRequest) -> Embeddings:
    """By a worker, and counted in the metrics."""
    observation = service.metrics.begin("embeddings", model)
    try:
        found = await service.dispatcher.embed(model, request)
    except ServeError as error:
        observation.finish(None, error)
        raise
    except BaseException:
        observation.finish(None, left=True)
        raise
    observation.finish(Usage(found.prompt_tokens, 0))
    return found


def _reply(found: Embeddings, *, as_base64: bool) -> wire.EmbedReply:
    size = found.dimensions * 4
    rows = [found.data[start : start + size] for start in range(0, len(found.data), size)]
    if as_base64:
        return wire.EmbedReply(tuple(base64.b64encode(row).decode() for row in rows), found.prompt_tokens)
    return wire.EmbedReply(tuple(tuple(floats(row)) for row in rows), found.prompt_tokens)
