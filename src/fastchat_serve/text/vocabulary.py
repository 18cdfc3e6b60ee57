"""The tokens of a model: which there are, text to and from them, and how the contract shows them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fastchat_serve.engine import TokenLogprob
from fastchat_serve.errors import InvalidRequest, StartupError
from fastchat_serve.text.detokenize import ByteDetokenizer, Detokenizer, TextOfTokens, TokenBytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TokenizerVocabulary", "Vocabulary", "tokenizer_of"]

_LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


class Vocabulary(ABC):
    """The tokens of a model, used on any thread. `size` is the model's: the ids that may occur.

    What follows from the bytes of each token is here. A library that knows more of its tokens says so in a subclass.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    @abstractmethod
    def encode(self, text: str, *, special: bool, most: int | None = None) -> list[int]:
        """The tokens of `text`; with `special`, also those that the model puts around it. At most `most` in all."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """What the token writes; empty for an id that is none. A special one writes its name."""

    @property
    @abstractmethod
    def hidden_ids(self) -> Collection[int]:
        """Special tokens: they are no part of an answer's text."""

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token, at least 1: a text has no fewer tokens than its length divided by it."""
        return max((len(self.token_bytes(id)) for id in range(self.size)), default=1) or 1

    def decode(self, token_ids: Sequence[int]) -> str:
        """What the tokens say, special ones included."""
        return b"".join(map(self.token_bytes, token_ids)).decode(errors="replace")

    def detokenizer(self, prompt_ids: Sequence[int] = ()) -> TextOfTokens:
        """For an answer that continues a prompt of these tokens."""
        hidden = self.hidden_ids
        return ByteDetokenizer(lambda id: b"" if id in hidden else self.token_bytes(id), prompt_ids=prompt_ids)

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
        data = self.token_bytes(token)
        shown = None if value is None else max(value, _LEAST_LOGPROB)
        return TokenLogprob(token, data.decode(errors="replace"), data, shown, top)


class TokenizerVocabulary(Vocabulary):
    """The tokens of a ``tokenizers.Tokenizer``.

    Texts go to it as batches of one, for which it lets other threads run; a single text it encodes alone.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        super().__init__(size)
        self._tokenizer, self._bytes = tokenizer, TokenBytes(tokenizer)

    @cached_property
    def longest_token(self) -> int:
        return max(map(len, self._tokenizer.get_vocab()), default=1)

    @cached_property
    def hidden_ids(self) -> frozenset[int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(id for id, token in added.items() if token.special)

    def encode(self, text: str, *, special: bool, most: int | None = None) -> list[int]:
        if most is None:
            return self._tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        around = self._tokenizer.num_special_tokens_to_add(False) if special else 0
        encoding.truncate(max(most - around, 0))
        return self._tokenizer.post_process(encoding, None, special).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        (text,) = self._tokenizer.decode_batch([list(token_ids)], skip_special_tokens=False)
        return text

    def detokenizer(self, prompt_ids: Sequence[int] = ()) -> TextOfTokens:
        return Detokenizer(self._tokenizer, prompt_ids=prompt_ids)

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id]


def tokenizer_of(tokenizer: Any) -> Tokenizer:
    """The ``tokenizers.Tokenizer`` in one of transformers', without what it would cut or fill up.

    Raises `StartupError` if there is none.
    """
    from tokenizers import Tokenizer

    own = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(own, Tokenizer):
        raise StartupError("the model's tokenizer has no fast form (tokenizer.json), which streaming needs")
    own.no_truncation()
    own.no_padding()
    return own
