"""What the tokens of a model look like: for log-probabilities and for limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Protocol

from tokenizers import Tokenizer

from fastchat_serve import InvalidRequest, TokenLogprob
from fastchat_serve.text import TokenBytes

__all__ = ["Entry", "Vocabulary"]

_LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


class Entry(Protocol):
    """One of vLLM's log-probabilities."""

    @property
    def logprob(self) -> float: ...
    @property
    def rank(self) -> int | None: ...


class Vocabulary:
    """The tokens of one tokenizer. `size` is the model's: the ids that may occur."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size
        self._bytes = TokenBytes(tokenizer)

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token, at least 1."""
        return max(map(len, self.tokenizer.get_vocab()), default=1)

    def check_ids(self, name: str, ids: Iterable[int]) -> None:
        """Raises `InvalidRequest` for an id that is no token's."""
        for id in ids:
            if not 0 <= id < self.size:
                raise InvalidRequest(f"Token id {id} is none of this model's {self.size}.", param=name)

    def logprob(self, entries: Mapping[int, Entry], count: int) -> TokenLogprob:
        """As the contract reports it. vLLM's `entries` begin with the token itself; then come the `count` most
        likely ones, which may include it."""
        token = next(iter(entries))
        ranked = list(entries.items())
        if len(ranked) > count:  # it is none of them
            del ranked[0]
        ranked.sort(key=lambda item: item[1].rank or 0)
        return self._entry(token, entries[token].logprob, tuple(self._entry(id, e.logprob) for id, e in ranked))

    def unpredicted(self, token: int) -> TokenLogprob:
        """The first token of a prompt: nothing comes before it that could make it likely."""
        return self._entry(token, None)

    def _entry(self, token: int, value: float | None, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        data = self._bytes[token]
        shown = None if value is None else max(value, _LEAST_LOGPROB)
        return TokenLogprob(token, data.decode(errors="replace"), data, shown, top)
