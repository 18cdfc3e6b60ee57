"""Under which name a network takes its cache and gives it back.

Since transformers 5.24 that is ``cache`` everywhere; before, and in models that bring their own code, it is
``past_key_values``, and ``cache_params`` for Mamba and its kin.
"""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["cache_of", "cache_parameter"]

_NAMES = ("cache", "past_key_values", "cache_params")


def cache_of(out: Any) -> tuple[str, Any]:
    """The name and the cache in a pass's output. Raises `LookupError` if there is none."""
    for name in _NAMES:
        if (cache := out.get(name)) is not None:
            return name, cache
    raise LookupError("the model gives no cache back")


def cache_parameter(network: Any) -> str:
    """The name of the parameter of `network`'s forward pass."""
    parameters = inspect.signature(network.forward).parameters
    return next((name for name in _NAMES if name in parameters), "past_key_values")
