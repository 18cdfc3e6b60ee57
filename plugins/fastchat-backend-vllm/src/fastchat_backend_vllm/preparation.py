"""Threads that prepare requests: a short one never waits for a long one."""

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
    """One thread for what is quick, and one for long texts and for constraints, which take what they take."""

    def __init__(self) -> None:
        self._quick, self._slow = (
            ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"fastchat-vllm-{kind}") for kind in ("quick", "slow")
        )

    def submit(self, work: Callable[[], T], *, length: int, slow: bool = False) -> Future[T]:
        """Do `work` on a text of this `length`."""
        return (self._slow if slow or length >= _LONG else self._quick).submit(work)

    def close(self) -> None:
        """Begin nothing more. What is under way ends by itself."""
        for lane in (self._quick, self._slow):
            lane.shutdown(wait=False, cancel_futures=True)


def size(prompt: TextPrompt | TokenPrompt | ChatPrompt) -> int:
    """About how long a prompt is, in characters or tokens."""
    if isinstance(prompt, TextPrompt):
        return len(prompt.text)
    if isinstance(prompt, TokenPrompt):
        return len(prompt.token_ids)
    return sum(len(message.text) for message in prompt.messages)
