"""What the mock's tokens are: each holds one ``@`` and nothing else does, so that clients count them in one call."""

from __future__ import annotations

import time

__all__ = ["PROMPT_TOKENS", "TOKENS", "stamp", "whole"]

PROMPT_TOKENS = 32
"""What every prompt is said to have."""

TOKENS = tuple(f" @tok{i * 7919 % 100_000:05}" for i in range(64))
"""Varied, as some gateways refuse a stream that repeats itself. A power of two of them."""


def stamp() -> str:
    """A token that says when it was sent: the last 8 digits of a monotonic clock in microseconds."""
    return f" @{time.perf_counter_ns() // 1000 % 100_000_000:08}"


def whole(size: int) -> str:
    """An answer of `size` bytes, at least one."""
    return "@" + "x" * (size - 1)
