"""Threads that prepare requests: a short one never waits for a long one.

A megabyte of text takes a tokenizer half a second. Long texts have a thread of their own, so that however many come,
others are held up by nothing longer than themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fastchat_serve import ChatPrompt, TextPrompt, TokenPrompt

__all__ = ["Lanes", "size"]

T = TypeVar("T")

_LONG = 32_768
"""Characters, or tokens, from which on a text is long: some twenty milliseconds."""


class Lanes:
    """One thread for short texts and one for long ones."""

    def __init__(self, name: str) -> None:
        self._short, self._long = (
            ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"{name}-{kind}") for kind in ("short", "long")
        )

    def submit(self, length: int, work: Callable[[], T]) -> Future[T]:
        """Do `work` on a text of this `length`."""
        return (self._long if length >= _LONG else self._short).submit(work)

    def close(self) -> None:
        """Begin nothing more."""
        for lane in (self._short, self._long):
            lane.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Wait for what is under way."""
        for lane in (self._short, self._long):
            lane.shutdown(wait=True)


def size(prompt: TextPrompt | TokenPrompt | ChatPrompt) -> int:
    """About how long a prompt is, in characters or tokens."""
    if isinstance(prompt, TextPrompt):
        return len(prompt.text)
    if isinstance(prompt, TokenPrompt):
        return len(prompt.token_ids)
    return sum(len(message.text) for message in prompt.messages)
