"""The tokens of a model: which there are, and how the contract shows them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from fastchat_serve.engine import TokenLogprob
from fastchat_serve.errors import InvalidRequest
from fastchat_serve.text.detokenize import TokenBytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Vocabulary"]

_LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


class Vocabulary:
    """The tokens of a ``tokenizers.Tokenizer``. `size` is the model's: the ids that may occur."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size
        self._bytes = TokenBytes(tokenizer)

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token, at least 1: a text has no fewer tokens than its length divided by it."""
        return max(map(len, self.tokenizer.get_vocab()), default=1)

    def check_ids(self, name: str, ids: Iterable[int]) -> None:
        """Raises `InvalidRequest` about the parameter `name` for an id that is no token's."""
        for id in ids:
            if not 0 <= id < self.size:
                raise InvalidRequest(f"Token id {id} is none of this model's {self.size}.", param=name)

    def logprob(self, token: int, value: float | None, top: Iterable[tuple[int, float]] = ()) -> TokenLogprob:
        """As the contract reports it. `top` are ids and log-probabilities of alternatives, best first.

        `value` is None for the first token of a prompt: nothing comes before it that could make it likely.
        """
        return self._entry(token, value, tuple(self._entry(id, logprob) for id, logprob in top))

    def _entry(self, token: int, value: float | None, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        data = self._bytes[token]
        shown = None if value is None else max(value, _LEAST_LOGPROB)
        return TokenLogprob(token, data.decode(errors="replace"), data, shown, top)
