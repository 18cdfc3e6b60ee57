"""What the tokens of a model look like: for log-probabilities, and to tell how short a text can become."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from fastchat_serve import TokenLogprob
from fastchat_serve.text import TokenBytes

__all__ = ["Vocabulary"]

_LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


class Vocabulary:
    """The tokens of one tokenizer. `size` is the model's: the ids that may occur."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size
        self._bytes = TokenBytes(tokenizer)

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token, at least 1."""
        return max(map(len, self.tokenizer.get_vocab()), default=1)

    def logprob(self, token: int, logprobs: NDArray[np.float32], alternatives: int) -> TokenLogprob:
        """As the contract reports it, from the log-probabilities ``[vocabulary]`` at a position."""
        top = tuple(self._entry(id, float(logprobs[id])) for id in _most_likely(logprobs, alternatives))
        return self._entry(token, float(logprobs[token]), top)

    def unpredicted(self, token: int) -> TokenLogprob:
        """The first token of a prompt: nothing comes before it that could make it likely."""
        return self._entry(token, None)

    def _entry(self, token: int, value: float | None, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        data = self._bytes[token]
        shown = None if value is None else max(value, _LEAST_LOGPROB)
        return TokenLogprob(token, data.decode(errors="replace"), data, shown, top)


def _most_likely(logprobs: NDArray[np.float32], number: int) -> list[int]:
    """The best first, the lowest id first in a tie."""
    number = min(number, len(logprobs))
    if number == 0:
        return []
    least = np.partition(logprobs, -number)[-number]
    ids = np.flatnonzero(logprobs >= least)
    found: list[int] = ids[np.argsort(-logprobs[ids], kind="stable")][:number].tolist()
    return found
