"""Conversations: the chat API of all providers and endpoints, which is OpenAI's."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import MappingProxyType
from typing import Any

import msgspec
from huggingface_hub import AsyncInferenceClient, ChatCompletionStreamOutput

from fastchat_backend_hf_inference.options import HfInferenceOptions
from fastchat_backend_openai.answers import UpstreamAnswer
from fastchat_backend_openai.dialects import Dialect
from fastchat_backend_openai.events import Event
from fastchat_backend_openai.requests import chat_body
from fastchat_serve import Capability, ChatPrompt, Chunk, GenerateRequest

__all__ = ["CHAT", "chat_arguments", "read_chat"]

_C = Capability
_ROUTER = frozenset({_C.TOOL_CHOICE, _C.PENALTIES, _C.LOGPROBS, _C.JSON_OBJECT, _C.JSON_SCHEMA})

CHAT = MappingProxyType(
    {
        "router": Dialect(_ROUTER),
        # The client rewrites schemas into TGI's form for every endpoint, where others would not see them.
        "openai": Dialect(_ROUTER - {_C.JSON_OBJECT, _C.JSON_SCHEMA}),
        "tgi": Dialect(_ROUTER | {_C.SEED}),
    }
)
"""What each kind of server can do in chats."""


def chat_arguments(
    request: GenerateRequest, prompt: ChatPrompt, *, kind: str, options: HfInferenceOptions
) -> dict[str, Any]:
    """What `AsyncInferenceClient.chat_completion` is called with. Raises `Unsupported`."""
    body = chat_body(request, prompt, dialect=CHAT[kind])
    if kind == "tgi" and body["top_p"] >= 1:
        del body["top_p"]  # off; TGI takes only what is below
    if kind == "tgi" and body.get("response_format", {}).get("type") == "json_object":
        any_object = {"name": "answer", "schema": {"type": "object"}}
        body["response_format"] = {"type": "json_schema", "json_schema": any_object}
    if options.usage == "ask":
        body["stream_options"] = {"include_usage": True}
    return body


async def read_chat(
    call: AsyncInferenceClient, model: str, arguments: dict[str, Any], answer: UpstreamAnswer
) -> AsyncGenerator[Chunk, None]:
    """The answer, chunk by chunk. Raises what the client raises, and `EngineError` for what it does not notice."""
    async for event in await call.chat_completion(model=model, stream=True, **arguments):
        answer.take(_event(event))
        if (chunk := answer.news()) is not None:
            yield chunk
    yield answer.last()


def _event(event: ChatCompletionStreamOutput) -> Event:
    """`event` as it was sent. The client keeps fields that it does not know only in the object they belong to."""
    raw = dict(event)
    if isinstance(event.choices, list):
        raw["choices"] = [
            {**choice, "delta": dict(choice.delta)} if isinstance(choice.delta, dict) else choice
            for choice in event.choices
        ]
    return msgspec.convert(raw, Event)
