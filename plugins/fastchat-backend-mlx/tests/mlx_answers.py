"""Requests in a few words, and answers read to the end. Imports no mlx."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastchat_serve import ChatPrompt, EngineSetup, GenerateRequest, PushEngine, TextPrompt, TokenPrompt
from fastchat_serve.testing.answers import Answer
from fastchat_serve.testing.asking import RecordingSink, answer, saying, until
from fastchat_serve.testing.asking import asking as ask

__all__ = ["PROMPTS", "WEIGHTS", "Answer", "Opened", "RecordingSink", "answer", "answers", "asking", "setup", "until"]

Prompt = TextPrompt | TokenPrompt | ChatPrompt
Opened = Callable[..., AbstractAsyncContextManager[Any]]

WEIGHTS = Path(str(files("fastchat_model_demo") / "weights"))

PROMPTS = [
    "Hello!",
    "My name is Ada. What is my name?",
    "What is 7 plus 8?",
    "Tell me a story about a lighthouse.",
    "Say: naïve café 🙂",
]


async def answers(engine: PushEngine, requests: Sequence[GenerateRequest]) -> list[Answer]:
    """All of them, at once."""
    return await asyncio.gather(*(answer(engine, request) for request in requests))


def asking(prompt: str | Prompt = PROMPTS[3], *, max_tokens: int | None = 24, **fields: Any) -> GenerateRequest:
    """A request for greedy tokens; a text is what the user says, and `fields` go where they belong."""
    return ask(saying(prompt) if isinstance(prompt, str) else prompt, max_tokens=max_tokens, **fields)


def setup(model: Path | str = WEIGHTS, **options: Any) -> EngineSetup:
    """For `open_mlx`: float32, and nothing kept from one request to the next unless `options` say so."""
    from fastchat_backend_mlx import MlxOptions

    settings: dict[str, Any] = {"dtype": "float32", "prefix_cache_bytes": "0B"} | options
    return EngineSetup(str(model), MlxOptions(**settings), lambda stage, fraction=None: None)
