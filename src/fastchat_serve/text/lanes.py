"""Threads that prepare requests: a short one never waits for a long one.

A megabyte of text takes a tokenizer half a second, and a constraint takes what it takes. Both have a thread of their
own, so that however many come, others are held up by nothing longer than themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fastchat_serve.engine import ChatPrompt, EmbedRequest, GenerateRequest, TextPrompt, TokenPrompt

__all__ = ["Lanes", "is_slow"]

T = TypeVar("T")

_LONG = 32_768
"""Characters, or tokens, from which on a text is long: some twenty milliseconds."""


class Lanes:
    """One thread for what is quick, and one for what is slow. `name` is that of the threads."""

    def __init__(self, name: str) -> None:
        self._quick, self._slow = (
            ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"{name}-{kind}") for kind in ("quick", "slow")
        )

    def submit(self, work: Callable[[], T], *, slow: bool) -> Future[T]:
        """Do `work` soon."""
        return (self._slow if slow else self._quick).submit(work)

    def close(self) -> None:
        """Begin nothing more. What is under way ends by itself."""
        for lane in (self._quick, self._slow):
            lane.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Wait, once closed, for what is under way."""
        for lane in (self._quick, self._slow):
            lane.shutdown(wait=True)


def is_slow(about: GenerateRequest | EmbedRequest | TextPrompt | TokenPrompt | ChatPrompt) -> bool:
    """Whether it takes long to tokenise, or has a constraint to compile."""
    if isinstance(about, GenerateRequest):
        return about.constraint is not None or is_slow(about.prompt)
    if isinstance(about, EmbedRequest):
        return sum(map(_size, about.inputs)) >= _LONG
    must_call = isinstance(about, ChatPrompt) and about.tool_choice is not None  # a constraint, too
    return must_call or _size(about) >= _LONG


def _size(prompt: TextPrompt | TokenPrompt | ChatPrompt) -> int:
    """About how long a prompt is, in characters or tokens."""
    if isinstance(prompt, TextPrompt):
        return len(prompt.text)
    if isinstance(prompt, TokenPrompt):
        return len(prompt.token_ids)
    return sum(len(message.text) for message in prompt.messages)
