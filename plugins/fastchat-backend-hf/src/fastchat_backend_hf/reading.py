"""A context on its way into the model: everything but its last token, which the first decoding step reads.

A prompt is read block by block between the steps of the answers under way, so it has a state of its own until it
becomes a row. Plain Python: what a runner keeps for it is the runner's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["BLOCK_TOKENS", "Reading"]

BLOCK_TOKENS = 16
"""Contexts are kept for others in blocks of this many tokens."""


class Reading:
    """How far one context has been read.

    Attributes:
        tokens: All that is to be read.
        adapter: What it goes through; None: the model alone.
        done: How many of `tokens` are.
        cached: How many of `done` were found in a cache, and not computed.
        salt: Contexts with the same one may share their beginnings; None shares nothing.
        names: Of the leading blocks in the prefix cache; empty: they are neither looked for nor kept.
        kv: What the runner holds for it until it becomes a row.
    """

    __slots__ = ("adapter", "cached", "done", "kv", "names", "salt", "tokens")

    def __init__(
        self,
        tokens: Sequence[int],
        adapter: str | None = None,
        salt: tuple[str, ...] | None = None,
        names: Sequence[bytes] = (),
    ) -> None:
        self.tokens, self.adapter, self.salt, self.names = tokens, adapter, salt, names
        self.done = self.cached = 0
        self.kv: Any = None

    @property
    def left(self) -> int:
        """Tokens to be read before it can become a row."""
        return len(self.tokens) - self.done
