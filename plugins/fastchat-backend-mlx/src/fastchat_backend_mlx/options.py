"""What can be set for the backend: the table ``[worker.options]`` when ``backend = "mlx"``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from fastchat_serve.text import VariableType

__all__ = ["MlxOptions", "in_bytes"]

_Positive = Annotated[int, Meta(ge=1)]
_Bytes = Annotated[str, Meta(pattern=r"^\d+(\.\d+)? ?([KMGT]i?B|B)$", title='a size such as "2GiB" or "512MiB"')]


class MlxOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every default means: choose what suits the model."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and cache. ``auto``: the checkpoint's own. Quantised weights stay as they are; then it is what they
    are computed in."""
    adapter: Path | None = None
    """Folder of an adapter that mlx-lm trained, merged into the weights while loading; beside weights that are
    quantised."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. It can do whatever this process can."""
    chat_template: Path | None = None
    """A file with a Jinja chat template, instead of the model's own."""
    chat_template_kwargs: dict[str, VariableType] = {}
    """Variables of the template that a request may set, and their types: ``{enable_thinking = "bool"}``."""
    generation_config: bool = True
    """Take temperature, top_p, top_k and so on from the model's generation config where a request leaves them open.
    False: OpenAI's defaults, whatever the model."""
    context_length: _Positive | None = None
    """Tokens of prompt and answer together. None: the model's own limit."""
    max_batch: Annotated[int, Meta(ge=1, le=1024)] = 32
    """Answers generated at the same time, those whose prompt is being read included; others wait."""
    prefill_batch: _Positive = 8
    """Prompts read at the same time."""
    prefill_tokens: _Positive = 512
    """Tokens of each prompt that are read between two steps of the answers under way."""
    prefix_cache_bytes: _Bytes = "1GiB"
    """Keep what was computed for prompts and answers, up to this size, and reuse it for prompts of the same client
    that begin alike. ``0B``: keep nothing."""


def in_bytes(size: str) -> int:
    """A size of the options as a number; K, M, G and T are powers of 1024."""
    unit = size.lstrip("0123456789. ")
    number = float(size.removesuffix(unit))
    return int(number * 1024 ** " KMGT".index(unit.rstrip("iB") or " "))
