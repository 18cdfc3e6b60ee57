"""What the tokens of a model look like: for prompts and for log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from tokenizers import Tokenizer

from fastchat_serve import TokenLogprob
from fastchat_serve.text import TokenBytes

__all__ = ["Entry", "Vocabulary"]

_LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""

Entry = tuple[float | None, int, object]
"""A token as SGLang reports it: log-probability, id, and a text that is not asked for."""


class Vocabulary:
    """The tokens of one tokenizer. `size` is the model's: the ids that may occur."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size
        self._bytes = TokenBytes(tokenizer)

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token, at least 1."""
        return max(map(len, self.tokenizer.get_vocab()), default=1)

    def logprobs(
        self, chosen: Sequence[Entry], top: Sequence[Sequence[Entry] | None], alternatives: int
    ) -> tuple[TokenLogprob, ...]:
        """One entry per token of `chosen`, each with the first `alternatives` of its entry in `top`."""
        if not alternatives:
            return tuple(self._entry(entry) for entry in chosen)
        return tuple(
            self._entry(entry, tuple(map(self._entry, (best or ())[:alternatives])))
            for entry, best in zip(chosen, top, strict=True)
        )

    def _entry(self, entry: Entry, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        value, token, _ = entry
        data = self._bytes[token]
        logprob = None if value is None else max(value, _LEAST_LOGPROB)
        return TokenLogprob(token, data.decode(errors="replace"), data, logprob, top)
