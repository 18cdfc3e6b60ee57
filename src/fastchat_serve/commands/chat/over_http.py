"""A model of a running server, over OpenAI's API."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import msgspec
from msgspec import Struct

from fastchat_serve.commands.chat.partner import Partner, Settings
from fastchat_serve.commands.client import RequestFailed, ServerClient, error_message
from fastchat_serve.engine import Chunk, FinishReason, Message
from fastchat_serve.protocol import openai as wire

__all__ = ["over_http"]

DONE = "[DONE]"


class _Delta(Struct, frozen=True):
    content: str | None = None


class _Choice(Struct, frozen=True):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Event(Struct, frozen=True):
    """What is read of ``chat.completion.chunk``: no more than every server sends."""

    choices: tuple[_Choice, ...] | None = None


class _OverHttp:
    """`model`, of the server that `client` is connected to."""

    def __init__(self, client: ServerClient, model: str) -> None:
        self._client = client
        self.model, self.place = model, f"at {client.url}"

    async def answer(self, messages: Sequence[Message], settings: Settings) -> AsyncGenerator[Chunk, None]:
        body = {
            "model": self.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "stream": True,
        }
        reason: FinishReason | None = None
        async with aclosing(self._client.events("/v1/chat/completions", msgspec.json.encode(body))) as events:
            async for data in events:
                if data == DONE:
                    reason = reason or "stop"
                    break
                for choice in _choices(data):
                    reason = _reason(choice.finish_reason) or reason
                    if choice.delta.content:
                        yield Chunk(text=choice.delta.content)
        if reason is None:
            raise RequestFailed("The server ended the stream before the answer was complete.")
        yield Chunk(finish_reason=reason)


@asynccontextmanager
async def over_http(client: ServerClient, model: str | None) -> AsyncIterator[Partner]:
    """Connect. Without `model` the first that the server lists is taken. Raises `RequestFailed`."""
    async with client:
        yield _OverHttp(client, model if model is not None else await _first_model(client))


async def _first_model(client: ServerClient) -> str:
    try:
        models = msgspec.json.decode(await client.get("/v1/models"), type=wire.ModelList)
    except msgspec.DecodeError as error:
        raise RequestFailed(f"{client.url}/v1/models is no list of models: {error}") from None
    if not models.data:
        raise RequestFailed(f"The server at {client.url} has no models yet.")
    return models.data[0].id


def _choices(data: str) -> tuple[_Choice, ...]:
    """The choices of one event. Raises `RequestFailed` if it reports an error, or belongs to no chat."""
    try:
        choices = msgspec.json.decode(data, type=_Event).choices
    except msgspec.DecodeError as error:
        raise RequestFailed(f"The server sent an event that belongs to no chat: {error}") from None
    if choices is None:
        raise RequestFailed(error_message(data) or "The server sent an event that belongs to no chat.")
    return choices


def _reason(said: str | None) -> FinishReason | None:
    """To a chat, all that matters is whether the answer was cut off."""
    if said is None:
        return None
    return "length" if said == "length" else "stop"
