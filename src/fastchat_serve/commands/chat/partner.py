"""Who answers in a chat. `in_process.py` and `over_http.py` are the two kinds; the chat knows neither."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from msgspec import Struct

from fastchat_serve.engine import Chunk, Message

__all__ = ["Partner", "Settings"]


class Settings(Struct, frozen=True):
    """How answers are drawn."""

    temperature: float
    max_tokens: int


class Partner(Protocol):
    """One model that is ready to answer."""

    model: str
    place: str
    """Where it runs, in words for the screen."""

    def answer(self, messages: Sequence[Message], settings: Settings) -> AsyncGenerator[Chunk, None]:
        """Stream the next turn; the last chunk has a finish reason. Closing early frees what it held.

        Raises:
            FastchatServeError: It failed, perhaps in the middle; the text says why.
        """
        ...
