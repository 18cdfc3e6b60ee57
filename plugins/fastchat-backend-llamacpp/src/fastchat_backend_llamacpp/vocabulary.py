"""The tokens of a model, and text to and from them, by llama.cpp's tokenizer."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

from fastchat_backend_llamacpp.library import llama
from fastchat_backend_llamacpp.native import Model
from fastchat_backend_llamacpp.pieces import MOST_CHARACTERS, pieces
from fastchat_serve.text import Vocabulary

__all__ = ["GgufVocabulary"]

_SPECIAL_TOKENS = ("bos", "eos", "pad", "sep", "mask")
"""Whose texts a chat template may want, as ``bos_token`` and so on."""


class GgufVocabulary(Vocabulary):
    """May be used on any thread while the model is open.

    Attributes:
        end_ids: Tokens that end an answer.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model.vocabulary_size)
        self._library, self._handle = llama(), model.vocabulary
        library, handle, ids = self._library, self._handle, range(self.size)
        hiding = library.LLAMA_TOKEN_ATTR_CONTROL | library.LLAMA_TOKEN_ATTR_UNKNOWN
        self._is_bpe = library.llama_vocab_type(handle) == library.LLAMA_VOCAB_TYPE_BPE
        self._buffer = ctypes.create_string_buffer(256)
        self._token_bytes = [self._read_bytes(id) for id in ids]
        self._hidden_ids = frozenset(id for id in ids if library.llama_vocab_get_attr(handle, id) & hiding)
        self.end_ids = frozenset(id for id in ids if library.llama_vocab_is_eog(handle, id))

    @property
    def hidden_ids(self) -> frozenset[int]:
        return self._hidden_ids

    def token_bytes(self, token_id: int) -> bytes:
        return self._token_bytes[token_id]

    @property
    def bos_id(self) -> int | None:
        """The token that stands for a text without any, if the model has one."""
        id = int(self._library.llama_vocab_bos(self._handle))
        return id if id >= 0 else None

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Those the model has, by the names that chat templates use."""
        ids = {name: getattr(self._library, f"llama_vocab_{name}")(self._handle) for name in _SPECIAL_TOKENS}
        return {f"{name}_token": self._token_bytes[id].decode(errors="replace") for name, id in ids.items() if id >= 0}

    def encode(self, text: str, *, special: bool, most: int | None = None) -> list[int]:
        """Also finds special tokens that `text` names."""
        if not self._is_bpe or len(text) <= MOST_CHARACTERS:
            return self._encode(text, special=special)[:most]
        tokens = [token for piece in pieces(text) for token in self._encode(piece, special=False)]
        library, handle = self._library, self._handle
        if special and library.llama_vocab_get_add_bos(handle):
            tokens.insert(0, library.llama_vocab_bos(handle))
        if special and library.llama_vocab_get_add_eos(handle):
            tokens.append(library.llama_vocab_eos(handle))
        return tokens[:most]

    def decode(self, token_ids: Sequence[int]) -> str:
        tokens = (ctypes.c_int32 * len(token_ids))(*token_ids)
        room = sum(len(self._token_bytes[id]) for id in token_ids) + 8
        buffer = ctypes.create_string_buffer(room)
        size = self._library.llama_detokenize(self._handle, tokens, len(token_ids), buffer, room, False, True)
        if size < 0:
            raise ValueError(f"llama_detokenize wants {-size} bytes for {len(token_ids)} tokens")
        return buffer.raw[:size].decode(errors="replace")

    def _encode(self, text: str, *, special: bool) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        tokens = (ctypes.c_int32 * room)()
        count = self._library.llama_tokenize(self._handle, data, len(data), tokens, room, special, True)
        if count < 0:
            raise ValueError(f"llama_tokenize wants room for {-count} tokens in {len(data)} bytes")
        return tokens[:count]

    def _read_bytes(self, token_id: int) -> bytes:
        size = self._library.llama_token_to_piece(self._handle, token_id, self._buffer, len(self._buffer), 0, True)
        if size < 0:
            self._buffer = ctypes.create_string_buffer(-size)
            return self._read_bytes(token_id)
        return self._buffer.raw[:size]
