"""What a FastChat worker is asked of a model before it is sent a text."""

from __future__ import annotations

from litestar.handlers import ASGIRouteHandler

from fastchat_serve.engine import Capability
from fastchat_serve.errors import Unsupported
from fastchat_serve.fastchat.carried import CARRIER, PLAIN, prompt_from
from fastchat_serve.fastchat.peer import FastChatWorker
from fastchat_serve.protocol import fastchat as wire
from fastchat_serve.routes.door import Guard
from fastchat_serve.routes.fastchat.asked import awake, model_of
from fastchat_serve.routes.fastchat.route import Call, with_body
from fastchat_serve.routes.openai.service import Service

__all__ = ["fact_routes"]


def fact_routes(service: Service, guard: Guard) -> list[ASGIRouteHandler]:
    """How many tokens a text has, how conversations are written for the model, and how long its context is."""

    async def count(asked: wire.CountRequest, _: Call) -> wire.CountReply:
        model, prompt = model_of(service, asked.model), prompt_from(asked.prompt)
        worker = (await awake(service, model))[0]
        if isinstance(worker, FastChatWorker):
            return wire.CountReply(await worker.count(prompt))
        try:
            return wire.CountReply(len(await service.dispatcher.tokenize(model, prompt)))
        except Unsupported:  # as FastChat's workers without a tokenizer say it
            return wire.CountReply(0)

    async def template(asked: wire.ModelQuery, _: Call) -> wire.ConversationReply:
        workers = await awake(service, model_of(service, asked.model))
        chats = all(Capability.CHAT in worker.info.capabilities for worker in workers)
        return wire.ConversationReply(CARRIER if chats else PLAIN)

    async def details(asked: wire.ModelQuery, _: Call) -> wire.ContextLength:
        workers = await awake(service, model_of(service, asked.model))
        return wire.ContextLength(min(worker.info.context_length for worker in workers))

    limit_bytes = service.max_body_bytes
    return [
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
    ]
