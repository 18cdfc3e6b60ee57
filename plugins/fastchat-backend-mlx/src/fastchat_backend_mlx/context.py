"""How many tokens a model takes, prompt and answer together, read from its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["model_context_length"]

_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length")

_UNLIMITED = 10**9
"""Tokenizers that know no limit claim one over this."""


def model_context_length(config: Mapping[str, Any], tokenizer_limit: int) -> int | None:
    """The limit that the config states, stretched by its rope scaling; if none, the tokenizer's; None if neither."""
    text = config.get("text_config") or config
    stated = next((limit for name in _NAMES if isinstance(limit := text.get(name), int) and limit > 0), None)
    if stated is None:
        return tokenizer_limit if tokenizer_limit < _UNLIMITED else None
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    factor, kind = rope.get("factor"), rope.get("rope_type") or rope.get("type")
    if not isinstance(factor, int | float):
        return stated
    if kind in ("linear", "dynamic"):
        return int(stated * factor)
    if kind == "yarn" and (original := rope.get("original_max_position_embeddings")):
        return max(stated, int(original * factor))
    return stated  # newer kinds state the stretched length
