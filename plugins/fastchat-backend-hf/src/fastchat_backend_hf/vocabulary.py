"""What the tokens of a model look like, for log-probabilities."""

from __future__ import annotations

from functools import cached_property

from tokenizers import Tokenizer

from fastchat_backend_hf.sampling import Alternatives
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

    def logprob(self, token: int, entry: Alternatives) -> TokenLogprob:
        """As the contract reports it."""
        pairs = zip(entry.ids, entry.logprobs, strict=True)
        return self._logprob(token, entry.chosen, tuple(self._logprob(id, value) for id, value in pairs))

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token, at least 1."""
        return max(map(len, self.tokenizer.get_vocab()), default=1)

    def unpredicted(self, token: int) -> TokenLogprob:
        """The first token of a prompt: nothing comes before it that could make it likely."""
        return self._entry(token, None)

    def _logprob(self, token: int, value: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return self._entry(token, max(value, _LEAST_LOGPROB), top)

    def _entry(self, token: int, value: float | None, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        data = self._bytes[token]
        return TokenLogprob(token, data.decode(errors="replace"), data, value, top)
