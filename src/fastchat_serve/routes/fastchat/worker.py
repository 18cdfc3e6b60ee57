"""The routes of a FastChat worker, for all models that are served here: nested controllers need no other."""

from __future__ import annotations

import base64

import msgspec
from litestar.handlers import ASGIRouteHandler

from fastchat_serve.engine import Capability, ChatPrompt, EmbedRequest, TextPrompt, Usage
from fastchat_serve.errors import InvalidRequest, ServeError, Unsupported
from fastchat_serve.fastchat.carried import CARRIER, PLAIN, prompt_from
from fastchat_serve.fastchat.peer import FastChatWorker
from fastchat_serve.fastchat.served import models_served, workers_of
from fastchat_serve.protocol import fastchat as wire
from fastchat_serve.routes.door import PUBLIC
from fastchat_serve.routes.exchange import Exchange, decode
from fastchat_serve.routes.fastchat.failures import failure
from fastchat_serve.routes.fastchat.generation import Generation, generate_request
from fastchat_serve.routes.fastchat.peers import Peers
from fastchat_serve.routes.fastchat.route import Call, answering, with_body
from fastchat_serve.routes.hot import End
from fastchat_serve.routes.metrics import Operation
from fastchat_serve.routes.openai.embeddings import floats
from fastchat_serve.routes.openai.service import Service
from fastchat_serve.routes.openapi import documented
from fastchat_serve.worker.base import Worker

__all__ = ["worker_handlers"]

_params = msgspec.json.Decoder(wire.GenerateParams)
_encode = msgspec.json.Encoder().encode


def worker_handlers(service: Service, peers: Peers) -> list[ASGIRouteHandler]:
    """All but ``/worker_get_status``, which is the controller's as well."""
    dispatcher, registry, guard = service.dispatcher, service.dispatcher.registry, peers.or_key
    limit_bytes = service.max_body_bytes

    def model_of(asked: str | None) -> str:
        """Workers that have one model only are asked without its name."""
        models = models_served(registry)
        if asked is None and len(models) != 1:
            raise InvalidRequest("Say which model is meant: 'model' is missing.", param="model")
        return models[0] if asked is None else asked

    async def awake(model: str) -> list[Worker]:
        """The workers that take requests for `model`, once there is one."""
        await service.waking.wake(model)
        return workers_of(registry, model)

    async def count(asked: wire.CountRequest, _: Call) -> wire.CountReply:
        model, prompt = model_of(asked.model), prompt_from(asked.prompt)
        worker = (await awake(model))[0]
        if isinstance(worker, FastChatWorker):
            return wire.CountReply(await worker.count(prompt))
        try:
            return wire.CountReply(len(await dispatcher.tokenize(model, prompt)))
        except Unsupported:  # as FastChat's workers without a tokenizer say it
            return wire.CountReply(0)

    async def template(asked: wire.ModelQuery, _: Call) -> wire.ConversationReply:
        workers = await awake(model_of(asked.model))
        chats = all(Capability.CHAT in worker.info.capabilities for worker in workers)
        return wire.ConversationReply(CARRIER if chats else PLAIN)

    async def details(asked: wire.ModelQuery, _: Call) -> wire.ContextLength:
        workers = await awake(model_of(asked.model))
        return wire.ContextLength(min(worker.info.context_length for worker in workers))

    async def embed(asked: wire.EmbedParams, call: Call) -> wire.EmbedReply | wire.Failure:
        texts = (asked.input,) if isinstance(asked.input, str) else asked.input
        try:
            return await vectors(
                model_of(asked.model), texts, call.exchange, as_base64=asked.encoding_format == "base64"
            )
        except ServeError as error:
            return failure(error)

    async def vectors(model: str, texts: tuple[str, ...], exchange: Exchange, *, as_base64: bool) -> wire.EmbedReply:
        if not texts or len(texts) > service.limits.max_prompts:
            most = service.limits.max_prompts
            raise InvalidRequest(f"input has {len(texts)} texts; from 1 to {most} are taken.", param="input")
        await awake(model)
        request = EmbedRequest(
            id=f"fastchat-{exchange.unique_id}", inputs=tuple(map(TextPrompt, texts)), tenant=exchange.tenant
        )
        observation = service.metrics.begin("embeddings", model)
        try:
            found = await dispatcher.embed(model, request)
        except ServeError as error:
            observation.finish(None, error)
            raise
        except BaseException:
            observation.finish(None, left=True)
            raise
        observation.finish(Usage(found.prompt_tokens, 0))
        size = found.dimensions * 4
        rows = [found.data[start : start + size] for start in range(0, len(found.data), size)]
        if as_base64:
            return wire.EmbedReply(tuple(base64.b64encode(row).decode() for row in rows), found.prompt_tokens)
        return wire.EmbedReply(tuple(tuple(floats(row)) for row in rows), found.prompt_tokens)

    def generating(path: str, summary: str, *, stream: bool) -> ASGIRouteHandler:
        async def begin(exchange: Exchange, body: bytes) -> End:
            params = decode(_params, body)
            model = model_of(params.model)
            await awake(model)
            request = generate_request(params, exchange, service.limits)
            operation: Operation = "chat" if isinstance(request.prompt, ChatPrompt) else "text_completion"
            generation = Generation(
                exchange,
                service.metrics.begin(operation, model),
                dispatcher,
                model,
                request,
                prefix=params.prompt if params.echo is not False and not request.echo else "",
                stream=stream,
            )
            generation.start()
            return generation.close

        def refuse(exchange: Exchange, error: ServeError) -> None:
            exchange.reply_json(_encode(failure(error)) + (b"\0" if stream else b""))

        opt = documented(summary, "FastChat", wire.Message, request=wire.GenerateParams, method="POST")
        return answering(path, begin=begin, refuse=refuse, limit_bytes=limit_bytes, opt=PUBLIC | opt, guard=guard)

    return [
        generating("/worker_generate_stream", "Continue a text, in messages that grow", stream=True),
        generating("/worker_generate", "Continue a text", stream=False),
        with_body("/count_token", "Count tokens", wire.CountRequest, wire.CountReply, guard, count, limit_bytes),
        with_body(
            "/worker_get_conv_template",
            "How a front end has to write conversations",
            wire.ModelQuery,
            wire.ConversationReply,
            guard,
            template,
        ),
        with_body("/model_details", "Context of a model", wire.ModelQuery, wire.ContextLength, guard, details),
        with_body(
            "/worker_get_embeddings", "Embed texts", wire.EmbedParams, wire.EmbedReply, guard, embed, limit_bytes
        ),
    ]
