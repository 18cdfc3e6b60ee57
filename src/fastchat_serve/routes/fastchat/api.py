"""``/api/v1/…``: what FastChat's API server has beside OpenAI's routes, behind the keys like those.

Its refusals have FastChat's shape: status 400, a text and a number.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from litestar import asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send
from msgspec.structs import replace

from fastchat_serve.engine import GenerateRequest, TextPrompt
from fastchat_serve.errors import ServeError, Unsupported
from fastchat_serve.fastchat.served import workers_of
from fastchat_serve.protocol import fastchat as wire
from fastchat_serve.protocol import openai
from fastchat_serve.routes.asgi import AsgiExchange
from fastchat_serve.routes.exchange import Exchange, decode
from fastchat_serve.routes.fastchat.failures import failure, legacy_error
from fastchat_serve.routes.fastchat.route import until_gone
from fastchat_serve.routes.hot import End, HotRoute, require_post
from fastchat_serve.routes.openai.chat import begin_chat, generate_requests
from fastchat_serve.routes.openai.service import Service
from fastchat_serve.routes.openapi import documented
from fastchat_serve.routes.plain import PlainReply
from fastchat_serve.routes.sse import DONE, EventReply

__all__ = ["api_handlers"]

_chat = msgspec.json.Decoder(openai.ChatCompletionRequest)
_messages = msgspec.json.Decoder(wire.ApiChatRequest)
_tokens = msgspec.json.Decoder(wire.TokenCheckRequest)
_encode = msgspec.json.Encoder().encode


def api_handlers(service: Service) -> list[ASGIRouteHandler]:
    """Both."""
    return [_chat_route(service).handler(), _token_check(service)]


def _chat_route(service: Service) -> HotRoute:
    def begin(exchange: Exchange, body: bytes) -> End:
        try:
            request, requests = _requests(body, service, exchange)
            reply_type = _LegacyEvents if request.stream else _LegacyPlain
            return begin_chat(request, requests, service, exchange, reply_type)
        except ServeError as error:
            _refuse(exchange, error)
            return _nothing

    opt = documented(
        "Answer a conversation, or continue a text",
        "FastChat",
        openai.ChatCompletion,
        request=openai.ChatCompletionRequest,
        events=openai.ChatCompletionChunk,
        method="POST",
    )
    return HotRoute(path="/api/v1/chat/completions", limit_bytes=service.max_body_bytes, begin=begin, opt=opt)


def _requests(
    body: bytes, service: Service, exchange: Exchange
) -> tuple[openai.ChatCompletionRequest, Sequence[GenerateRequest]]:
    """What is asked. Messages that are one string are a prompt, to be continued as it is."""
    text = decode(_messages, body).messages
    if not isinstance(text, str):
        request = decode(_chat, body)
        return request, generate_requests(request, service, exchange)
    fields = msgspec.json.decode(body)
    turn = {"role": "user", "content": text}
    request = decode(_chat, _encode(fields | {"messages": [turn]}))
    prompt = TextPrompt(text)
    return request, [replace(each, prompt=prompt) for each in generate_requests(request, service, exchange)]


def _token_check(service: Service) -> ASGIRouteHandler:
    dispatcher = service.dispatcher
    opt = documented("Do prompts fit?", "FastChat", wire.TokenCheckReply, request=wire.TokenCheckRequest, method="POST")

    async def check(asked: wire.TokenCheck) -> wire.TokenCheckResult:
        context = min(worker.info.context_length for worker in workers_of(dispatcher.registry, asked.model))
        try:
            count = len(await dispatcher.tokenize(asked.model, TextPrompt(asked.prompt)))
        except Unsupported as error:
            raise Unsupported(f"The tokens of {asked.model!r} cannot be counted here.", param="prompts") from error
        return wire.TokenCheckResult(count + asked.max_tokens <= context, count, context)

    @asgi("/api/v1/token_check", copy_scope=False, opt=opt)
    async def token_check(scope: Scope, receive: Receive, send: Send) -> None:
        require_post(scope)
        exchange = AsgiExchange(scope, receive, send)

        async def reply() -> None:
            try:
                results = [await check(asked) for asked in request.prompts]
            except ServeError as error:
                _refuse(exchange, error)
            else:
                exchange.reply_json(_encode(wire.TokenCheckReply(tuple(results))))

        try:
            request = decode(_tokens, await exchange.body(service.max_body_bytes))
        except ServeError as error:
            _refuse(exchange, error)
            return
        await until_gone(exchange, reply)

    return token_check


def _refuse(exchange: Exchange, error: ServeError) -> None:
    exchange.reply_json(_encode(legacy_error(error)), 400)


def _nothing() -> None:
    """Is to be done at the end of a refusal."""


class _LegacyPlain(PlainReply):
    def write_refusal(self, error: ServeError) -> None:
        _refuse(self.exchange, error)


class _LegacyEvents(EventReply):
    def write_refusal(self, error: ServeError) -> None:
        _refuse(self.exchange, error)

    def write_error(self, error: ServeError) -> None:
        self.exchange.outlet.write(b"data: " + _encode(failure(error)) + b"\n\n" + DONE, last=True)
