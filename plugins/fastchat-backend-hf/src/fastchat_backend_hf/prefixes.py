"""Keys and values of prompts that were read before, to be reused by those that begin alike.

Contexts are cut into blocks, and a block is known by a keyed hash over all tokens up to its end: equal names
mean equal prefixes. The key is random for each process and the first hash is salted with who asks and with which
adapter, so nobody can find, or time, what somebody else has sent.

What is used least recently goes first. A block is never older than those that follow it, so the end of a prefix goes
before its beginning.
"""

from __future__ import annotations

import hashlib
import secrets
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from fastchat_backend_hf.reading import BLOCK_TOKENS

__all__ = ["PrefixCache"]

K = TypeVar("K")

_NAME_BYTES = 16


class PrefixCache(Generic[K]):
    """Blocks of `BLOCK_TOKENS` tokens by name; the caller bounds them with `shrink`."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._blocks: OrderedDict[bytes, K] = OrderedDict()
        """Least recently used first."""

    @property
    def tokens(self) -> int:
        """Tokens held."""
        return len(self._blocks) * BLOCK_TOKENS

    def names(self, salt: Sequence[str], tokens: Sequence[int], known: Sequence[bytes] = ()) -> list[bytes]:
        """The names of the whole blocks of `tokens`; the first ones may be `known`.

        Only contexts with the same `salt` share any.
        """
        names = list(known)
        name = names[-1] if names else self._hash(b"".join(self._hash(part.encode()) for part in salt))
        for start in range(len(names) * BLOCK_TOKENS, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            name = self._hash(name + array("q", tokens[start : start + BLOCK_TOKENS]).tobytes())
            names.append(name)
        return names

    def find(self, names: Sequence[bytes], start: int) -> list[K]:
        """The held blocks from number `start` on, up to the first that is missing."""
        stop = start
        while stop < len(names) and names[stop] in self._blocks:
            stop += 1
        if stop > start:
            self._touch(names[:stop])
        return [self._blocks[name] for name in names[start:stop]]

    def keep(self, names: Sequence[bytes], start: int, blocks: Iterable[K]) -> None:
        """Hold `blocks`, those of the context with these `names` from number `start` on."""
        stop = start
        for block in blocks:
            self._blocks[names[stop]] = block
            stop += 1
        self._touch(names[:stop])

    def forget(self, names: Sequence[bytes]) -> None:
        """Drop these blocks."""
        for name in names:
            self._blocks.pop(name, None)

    def shrink(self, most_tokens: int) -> None:
        """Drop the least recently used blocks until at most this many tokens are held."""
        while self._blocks and self.tokens > most_tokens:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        self._blocks.clear()

    def _touch(self, names: Sequence[bytes]) -> None:
        """A prefix was used: its end first, so that its beginning is newer."""
        for name in reversed(names):
            if name in self._blocks:
                self._blocks.move_to_end(name)

    def _hash(self, data: bytes) -> bytes:
        return hashlib.blake2b(data, key=self._secret, digest_size=_NAME_BYTES).digest()
