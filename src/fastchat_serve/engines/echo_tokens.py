"""The tokens of the echo engine: pieces of UTF-8 bytes, their ids, and vectors made of them.

A token is a word and the white space before it, a character, or a byte. Its id tells it again unless
it is longer than a character: see `token_id`.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal
from zlib import crc32

from fastchat_serve.engine import ChatPrompt, TextPrompt, TokenLogprob, TokenPrompt
from fastchat_serve.errors import InvalidRequest

__all__ = ["Split", "certain", "encode", "pieces", "prompt_bytes", "token_id", "unit_vector"]

Split = Literal["word", "character", "byte"]

_WORDS = re.compile(rb"\s*\S+|\s+$")
_CHARACTERS = re.compile(rb"[\x00-\x7f]|[\xc0-\xff][\x80-\xbf]*|[\x80-\xbf]")

_CHARACTER_BASE = 0x100
_HASH_BASE = _CHARACTER_BASE + sys.maxunicode + 1


def prompt_bytes(prompt: TextPrompt | TokenPrompt | ChatPrompt) -> bytes:
    """Raises `InvalidRequest`."""
    match prompt:
        case TextPrompt():
            return encode(prompt.text)
        case ChatPrompt(messages=()):
            raise InvalidRequest("There is no message to answer.", param="messages")
        case ChatPrompt():
            return encode("\n".join(f"{message.role}: {message.text}" for message in prompt.messages))
        case TokenPrompt():
            return b"".join(map(_token_bytes, prompt.token_ids))


def encode(text: str) -> bytes:
    """`text` as UTF-8. Raises `InvalidRequest`."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"The text holds half a surrogate pair at character {error.start}.") from None


def pieces(data: bytes, split: Split, cuts: Sequence[int] = ()) -> list[bytes]:
    """The tokens of `data`; together they are `data` again. `cuts`, if there are any, replace `split`."""
    if cuts:
        edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
        return [data[a:b] for a, b in pairwise(edges) if a < b]
    if split == "byte":
        return [data[i : i + 1] for i in range(len(data))]
    pattern = _WORDS if split == "word" else _CHARACTERS
    return pattern.findall(data)


def token_id(piece: bytes) -> int:
    """A byte is its own id, a character has its code point above those; anything longer has a hash above these."""
    if len(piece) == 1:
        return piece[0]
    try:
        return _CHARACTER_BASE + ord(piece.decode())
    except (UnicodeDecodeError, TypeError):
        return _HASH_BASE + (crc32(piece) & 0x3FFF_FFFF)


def _token_bytes(token_id: int) -> bytes:
    """The token of an id. Raises `InvalidRequest` for ids that only stand for a hash."""
    try:
        return bytes([token_id]) if token_id < _CHARACTER_BASE else chr(token_id - _CHARACTER_BASE).encode()
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"Token {token_id} is neither a byte nor a character: no prompt of the echo engine holds others.",
            param="prompt",
        ) from None


def certain(piece: bytes, alternatives: int) -> TokenLogprob:
    """Whatever the engine says it says with probability 1."""
    token = TokenLogprob(token_id(piece), piece.decode(errors="replace"), piece, 0.0)
    if not alternatives:
        return token
    return TokenLogprob(token.token_id, token.text, token.data, 0.0, (token,))


def unit_vector(data: bytes, dimensions: int) -> bytes:
    """A unit vector that depends on every byte of `data`: float32, little-endian."""
    digest = hashlib.shake_128(data).digest(2 * dimensions)
    words = [word | 1 for word in struct.unpack(f"<{dimensions}h", digest)]  # odd, so that they are not all zero
    length = math.hypot(*words)
    return struct.pack(f"<{dimensions}f", *(word / length for word in words))
