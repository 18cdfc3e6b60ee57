"""How many tokens a model takes, prompt and answer together, read from its config."""

from __future__ import annotations

from typing import Any

__all__ = ["model_context_length"]

_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length")

_UNLIMITED = 10**9
"""Tokenizers that know no limit claim an absurd one."""


def model_context_length(text_config: Any, tokenizer_limit: int | None, *, encoder: bool) -> int | None:
    """The limit of a model with `text_config`, None if it states none.

    `tokenizer_limit` is the tokenizer's ``model_max_length``. It counts if the config says nothing; for a text encoder
    the smaller of the two holds (RoBERTa has two positions more than it can use).
    """
    stated = [limit for name in _NAMES if isinstance(limit := getattr(text_config, name, None), int) and limit > 0]
    configured = _scaled(stated[0], getattr(text_config, "rope_parameters", None)) if stated else None
    usable = tokenizer_limit if tokenizer_limit is not None and 0 < tokenizer_limit < _UNLIMITED else None
    if configured is None or (encoder and usable is not None):
        return min(limit for limit in (configured, usable) if limit is not None) if configured or usable else None
    return configured


def _scaled(limit: int, rope: Any) -> int:
    """Position interpolation stretches what the config states; newer kinds state the stretched length."""
    if not isinstance(rope, dict) or not isinstance(rope.get("factor"), int | float):
        return limit
    kind, factor = rope.get("rope_type"), float(rope["factor"])
    if kind in ("linear", "dynamic"):
        return int(limit * factor)
    if kind == "yarn" and rope.get("original_max_position_embeddings"):
        return max(limit, int(rope["original_max_position_embeddings"] * factor))
    return limit
