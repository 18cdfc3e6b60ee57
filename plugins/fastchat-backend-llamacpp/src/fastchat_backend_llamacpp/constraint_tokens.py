"""A vocabulary of llama.cpp in the clothes of ``tokenizers.Tokenizer``, for the masks of constraints.

`Constraints` asks a tokenizer for the bytes of every token and for those that are special, and for nothing else. It
reads bytes from tokens in GPT-2's spelling, so they are spelled here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from fastchat_backend_llamacpp.vocabulary import Vocabulary

__all__ = ["ConstraintTokens"]


def _spelling() -> dict[int, str]:
    """GPT-2's characters for bytes: those visible in Latin-1 stand for themselves, the others from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


_SPELLING: Final = _spelling()


class _Special(NamedTuple):
    special: bool = True


class _Decoder:
    def __getstate__(self) -> bytes:
        return b'{"type": "ByteLevel"}'


class ConstraintTokens:
    """What `Constraints` needs of a tokenizer."""

    decoder = _Decoder()

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def id_to_token(self, id: int) -> str | None:
        return "".join(map(_SPELLING.__getitem__, self._vocabulary.token_bytes[id]))

    def get_added_tokens_decoder(self) -> Mapping[int, _Special]:
        return dict.fromkeys(self._vocabulary.hidden, _Special())
