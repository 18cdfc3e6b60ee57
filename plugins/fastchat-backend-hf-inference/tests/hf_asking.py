"""Requests, and events as Hugging Face's servers send them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2

from fastchat_backend_hf_inference.engine import HfInferenceEngine
from fastchat_serve import ChatPrompt, Chunk, GenerateRequest, Message

__all__ = ["PATIENCE_S", "Opened", "answer_of", "asking", "events", "text_event"]

Opened = Callable[..., AbstractAsyncContextManager[HfInferenceEngine]]

PATIENCE_S = 20.0
"""No wait of a test is longer."""


def asking(text: str = "hi", **changes: Any) -> GenerateRequest:
    """A chat of one message."""
    return GenerateRequest(**{"id": "r-1", "prompt": ChatPrompt((Message(role="user", content=text),))} | changes)


async def answer_of(engine: HfInferenceEngine, request: GenerateRequest | None = None) -> list[Chunk]:
    """All chunks, within bounded time."""
    async with asyncio.timeout(PATIENCE_S):
        return [chunk async for chunk in engine.generate_stream(request or asking())]


def events(*data: Any, done: bool = True) -> httpx2.Response:
    """A stream of server-sent events."""
    lines = [f"data: {json.dumps(item)}\n\n" for item in data] + ["data: [DONE]\n\n"] * done
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, text="".join(lines))


def text_event(text: str, finish: str | None = None, *, special: bool = False) -> dict[str, Any]:
    """One token of text-generation-inference."""
    details = {"finish_reason": finish, "generated_tokens": 3, "input_length": 2, "seed": None}
    token = {"id": 7, "text": text, "logprob": -0.5, "special": special}
    return {
        "index": 1,
        "token": token,
        "generated_text": None,
        "details": details if finish else None,
        "top_tokens": [token, token | {"id": 8, "text": "x", "logprob": -2.0}],
    }
