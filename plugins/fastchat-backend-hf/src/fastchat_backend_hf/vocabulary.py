"""What the tokens of a model look like: for log-probabilities and for constraints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
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
    def by_bytes(self) -> Mapping[bytes, Sequence[int]]:
        """The tokens that write given bytes, special ones left out. Slow the first time."""
        special = {id for id, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        index: dict[bytes, list[int]] = defaultdict(list)
        for id in range(min(self.size, self.tokenizer.get_vocab_size())):
            if id not in special and (data := self._bytes[id]):
                index[data].append(id)
        return dict(index)

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
