"""Threads that prepare requests: templates and tokenising, off the event loop and off the engine's thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fastchat_serve import ChatPrompt, TextPrompt, TokenPrompt

__all__ = ["Lanes", "length"]

T = TypeVar("T")

_LONG = 32_768
"""Characters, or tokens, from which on a prompt has the lane for long ones: it takes some 20 ms."""


class Lanes:
    """Two threads, so that a short prompt waits for no long one."""

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(1, thread_name_prefix="fastchat-mlx-short-prompts")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="fastchat-mlx-long-prompts")

    def submit(self, length: int, work: Callable[[], T]) -> Future[T]:
        """Do `work`, on a prompt of this `length`, soon."""
        return (self._long if length >= _LONG else self._short).submit(work)

    def close(self) -> None:
        """Begin nothing more; what is under way ends by itself."""
        self._short.shutdown(wait=False, cancel_futures=True)
        self._long.shutdown(wait=False, cancel_futures=True)


def length(prompt: TextPrompt | TokenPrompt | ChatPrompt) -> int:
    """Characters or tokens, roughly."""
    if isinstance(prompt, TextPrompt):
        return len(prompt.text)
    if isinstance(prompt, TokenPrompt):
        return len(prompt.token_ids)
    return sum(len(message.text) for message in prompt.messages)
