"""What was computed for contexts that are gone, for those that begin alike. Shared among one client's requests only.

mlx-lm brings a store of this kind; its search takes time that is quadratic in the length of a kept context, and it
copies a whole one for a single token in common.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache
from numpy.typing import NDArray

__all__ = ["Prefixes"]

_LEAST_TOKENS = 16
"""Fewer in common are not worth a copy."""

_MOST_CONTEXTS = 256
"""Each is compared with every new context of its client."""


@dataclass(eq=False, slots=True)
class _Kept:
    tenant: str
    tokens: NDArray[np.int64]
    cache: list[Any]

    @property
    def size(self) -> int:
        return sum(layer.nbytes for layer in self.cache)

    def usable(self, tokens: NDArray[np.int64]) -> int:
        """How many of `tokens`, from the first, its cache can serve."""
        shorter = min(len(tokens), len(self.tokens))
        differs = np.flatnonzero(self.tokens[:shorter] != tokens[:shorter])
        common = int(differs[0]) if len(differs) else shorter
        return common if common == len(self.tokens) or can_trim_prompt_cache(self.cache) else 0


class Prefixes:
    """Caches by the tokens they hold, up to `most_bytes`. The least recently used goes first."""

    def __init__(self, most_bytes: int) -> None:
        """0: nothing is kept."""
        self._most_bytes = most_bytes
        self._kept: list[_Kept] = []

    def __bool__(self) -> bool:
        """Whether anything is ever kept."""
        return self._most_bytes > 0

    def find(self, tenant: str, tokens: Sequence[int]) -> tuple[list[Any] | None, int]:
        """A cache that holds the beginning of `tokens`, and of how many of them; None and 0 if there is none."""
        wanted = np.array(tokens, dtype=np.int64)
        own = [(kept.usable(wanted), kept) for kept in self._kept if kept.tenant == tenant]
        usable, best = max(own, key=lambda found: found[0], default=(0, None))
        if best is None or usable < _LEAST_TOKENS:
            return None, 0
        self._kept.remove(best)
        self._kept.append(best)
        cache = copy.deepcopy(best.cache)
        trim_prompt_cache(cache, len(best.tokens) - usable)
        return cache, usable

    def keep(self, tenant: str, tokens: Sequence[int], cache: list[Any]) -> None:
        """Remember `cache`, which holds `tokens`."""
        if len(tokens) < _LEAST_TOKENS:
            return
        mx.async_eval([layer.state for layer in cache])  # or it would hold on to the whole batch that it was cut from
        new = _Kept(tenant, np.array(tokens, dtype=np.int64), cache)
        if can_trim_prompt_cache(cache):  # it does all that those it begins with could do
            self._kept = [
                kept for kept in self._kept if kept.tenant != tenant or kept.usable(new.tokens) < len(kept.tokens)
            ]
        self._kept.append(new)
        while self._kept and (len(self._kept) > _MOST_CONTEXTS or self._total() > self._most_bytes):
            del self._kept[0]

    def _total(self) -> int:
        return sum(kept.size for kept in self._kept)
