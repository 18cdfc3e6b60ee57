"""A model's tokens for llguidance: their bytes, and which of them end an answer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fastchat_serve.errors import StartupError
from fastchat_serve.text.vocabulary import Vocabulary

__all__ = ["library", "token_trie"]

_NO_TEXT = 0xFF
"""A byte that no text has; llguidance marks special tokens with it."""


def library() -> Any:
    """The module ``llguidance``. Raises `StartupError` if it is not installed."""
    try:
        import llguidance
    except ImportError as error:
        raise StartupError(
            f"constraints on answers need llguidance, which cannot be imported ({error}): pip install llguidance"
        ) from error
    return llguidance


def token_trie(vocabulary: Vocabulary, end_ids: Collection[int]) -> Any:
    """An ``LLTokenizer`` of the tokens of `vocabulary`, and one more if nothing ends an answer.

    Padding and special tokens write nothing, so no constraint ever allows them.
    """
    ll = library()
    special = {*vocabulary.hidden_ids, *end_ids}
    tokens = [b"" if id in special else _text(vocabulary.token_bytes(id)) for id in range(vocabulary.size)]
    ends = sorted(end_ids)
    if not ends:
        ends = [len(tokens)]
        tokens.append(b"")
    named = sorted(id for id in special | set(ends) if id < len(tokens))
    for id in named:
        tokens[id] = bytes([_NO_TEXT]) + b"<%d>" % id
    return ll.LLTokenizer(ll.TokenizerWrapper(_Tokens(tokens, named, ends[0])), eos_token=ends)


def _text(piece: bytes) -> bytes:
    return b"" if _NO_TEXT in piece else piece


class _Tokens:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], special: list[int], end: int) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special, end

    def __call__(self, text: bytes) -> list[int]:
        """How text is cut into tokens: asked only for grammars that force it, and ours do not."""
        raise NotImplementedError
