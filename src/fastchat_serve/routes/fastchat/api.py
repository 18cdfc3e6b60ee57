"""``/api/v1/…``: what FastChat's API server has beside OpenAI's routes, behind the keys like those.

Its refusals have FastChat's shape: status 400, a text and a number.
"""

from __future__ import annotations

import msgspec
from litestar.handlers import ASGIRouteHandler
from msgspec.structs import replace

from fastchat_serve.engine import TextPrompt
from fastchat_serve.errors import ServeError, Unsupported
from fastchat_serve.protocol import fastchat as wire
from fastchat_serve.protocol import openai
from fastchat_serve.routes.exchange import Exchange, decode
from fastchat_serve.routes.fastchat.asked import awake
from fastchat_serve.routes.fastchat.failures import failure, legacy_error
from fastchat_serve.routes.fastchat.route import answering
from fastchat_serve.routes.hot import End
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
    return [_chat_route(service), _token_check(service)]


def _chat_route(service: Service) -> ASGIRouteHandler:
    async def begin(exchange: Exchange, body: bytes) -> End:
        request, prompt = _asked(body)
        await service.waking.wake(request.model)
        requests = generate_requests(request, service, exchange)
        if prompt is not None:
            requests = [replace(each, prompt=prompt) for each in requests]
        return begin_chat(request, requests, service, exchange, _LegacyEvents if request.stream else _LegacyPlain)

    opt = documented(
        "Answer a conversation, or continue a text",
        "FastChat",
        openai.ChatCompletion,
        request=openai.ChatCompletionRequest,
        events=openai.ChatCompletionChunk,
        method="POST",
    )
    limit_bytes = service.max_body_bytes
    return answering("/api/v1/chat/completions", begin=begin, refuse=_refuse, limit_bytes=limit_bytes, opt=opt)


def _asked(body: bytes) -> tuple[openai.ChatCompletionRequest, TextPrompt | None]:
    """What is asked. Messages that are one string are a prompt, to be continued as it is."""
    text = decode(_messages, body).messages
    if not isinstance(text, str):
        return decode(_chat, body), None
    turn = {"role": "user", "content": text}
    return decode(_chat, _encode(msgspec.json.decode(body) | {"messages": [turn]})), TextPrompt(text)


def _token_check(service: Service) -> ASGIRouteHandler:
    opt = documented("Do prompts fit?", "FastChat", wire.TokenCheckReply, request=wire.TokenCheckRequest, method="POST")

    async def check(asked: wire.TokenCheck) -> wire.TokenCheckResult:
        context = min(worker.info.context_length for worker in await awake(service, asked.model))
        try:
            count = len(await service.dispatcher.tokenize(asked.model, TextPrompt(asked.prompt)))
        except Unsupported as error:
            raise Unsupported(f"The tokens of {asked.model!r} cannot be counted here.", param="prompts") from error
        return wire.TokenCheckResult(count + asked.max_tokens <= context, count, context)

    async def begin(exchange: Exchange, body: bytes) -> End:
        results = [await check(asked) for asked in decode(_tokens, body).prompts]
        exchange.reply_json(_encode(wire.TokenCheckReply(tuple(results))))
        return _nothing

    limit_bytes = service.max_body_bytes
    return answering("/api/v1/token_check", begin=begin, refuse=_refuse, limit_bytes=limit_bytes, opt=opt)


def _refuse(exchange: Exchange, error: ServeError) -> None:
    exchange.reply_json(_encode(legacy_error(error)), 400)


def _nothing() -> None:
    """Is to be done at the end."""


class _LegacyPlain(PlainReply):
    def write_refusal(self, error: ServeError) -> None:
        _refuse(self.exchange, error)


class _LegacyEvents(EventReply):
    def write_refusal(self, error: ServeError) -> None:
        _refuse(self.exchange, error)

    def write_error(self, error: ServeError) -> None:
        self.exchange.outlet.write(b"data: " + _encode(failure(error)) + b"\n\n" + DONE, last=True)
