"""Threads that prepare requests: templates, tokenising, constraints; off the event loop and off the engine's thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fastchat_serve import ChatPrompt, TextPrompt, TokenPrompt

__all__ = ["Lanes", "is_short"]

T = TypeVar("T")

_LONG = 32_768
"""Characters, or tokens, from which on a prompt is not short: it takes some 20 ms."""


class Lanes:
    """Two threads, so that what is quick waits for nothing that is slow."""

    def __init__(self) -> None:
        self._quick = ThreadPoolExecutor(1, thread_name_prefix="fastchat-mlx-quick-prompts")
        self._slow = ThreadPoolExecutor(1, thread_name_prefix="fastchat-mlx-slow-prompts")

    def submit(self, work: Callable[[], T], *, quick: bool) -> Future[T]:
        """Do `work` soon."""
        return (self._quick if quick else self._slow).submit(work)

    def close(self) -> None:
        """Begin nothing more; what is under way ends by itself."""
        self._quick.shutdown(wait=False, cancel_futures=True)
        self._slow.shutdown(wait=False, cancel_futures=True)


def is_short(prompt: TextPrompt | TokenPrompt | ChatPrompt) -> bool:
    """Whether a prompt is rendered and tokenised in no time."""
    if isinstance(prompt, TextPrompt):
        return len(prompt.text) < _LONG
    if isinstance(prompt, TokenPrompt):
        return len(prompt.token_ids) < _LONG
    return sum(len(message.text) for message in prompt.messages) < _LONG
