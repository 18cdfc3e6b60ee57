"""Vectors from what ``/embeddings`` replies.

Pure Python that takes time for many texts, so not for the loop's thread.
"""

from __future__ import annotations

import base64
import binascii
import math
import sys
from array import array

import msgspec

from fastchat_backend_openai.events import EmbeddingItem, EmbeddingReply
from fastchat_serve import Embeddings, EngineError

__all__ = ["read_embeddings", "unit_rows"]

_decode = msgspec.json.Decoder(EmbeddingReply).decode
_NEARLY_ONE = 1e-6


def read_embeddings(body: bytes, count: int, *, usage_needed: bool) -> Embeddings:
    """Vectors of length 1 for `count` inputs, in their order.

    Raises:
        EngineError: The reply is not that.
    """
    try:
        reply = _decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise EngineError("The upstream's embeddings cannot be read.") from None
    items = reply.data
    if all(item.index is not None for item in items):
        items = sorted(items, key=lambda item: item.index or 0)
    if len(items) != count:
        raise EngineError(f"The upstream made {len(items)} vectors of {count} inputs.")
    if reply.usage is None and usage_needed:
        raise EngineError("The upstream did not count the tokens of the inputs.", code="upstream_no_usage")
    return unit_rows([_floats(item) for item in items], reply.usage.prompt_tokens if reply.usage is not None else 0)


def unit_rows(rows: list[array[float]], prompt_tokens: int) -> Embeddings:
    """`rows` scaled to length 1, where they are not already. Raises `EngineError` for what cannot be."""
    dimensions = len(rows[0]) if rows else 0
    if not dimensions or any(len(row) != dimensions for row in rows):
        raise EngineError("The upstream's vectors have no length in common.")
    data = bytearray()
    for row in rows:
        norm = math.hypot(*row)
        if not norm or not math.isfinite(norm):
            raise EngineError("A vector of the upstream has no direction.")
        unit = row if abs(norm - 1) < _NEARLY_ONE else array("f", [value / norm for value in row])
        if sys.byteorder == "big":
            unit = array("f", unit)
            unit.byteswap()
        data += unit.tobytes()
    return Embeddings(bytes(data), dimensions, prompt_tokens)


def _floats(item: EmbeddingItem) -> array[float]:
    try:
        if not isinstance(item.embedding, str):
            return array("f", item.embedding)
        values = array("f", base64.b64decode(item.embedding, validate=True))
    except (binascii.Error, ValueError, OverflowError):
        raise EngineError("The upstream's embeddings cannot be read.") from None
    if sys.byteorder == "big":
        values.byteswap()
    return values
