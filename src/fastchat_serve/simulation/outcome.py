"""What came of a run: counts, and times of which one wants to know the quantiles."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

__all__ = ["Outcome", "quantile"]


class Outcome(Struct, kw_only=True):
    """One policy's run."""

    policy: str
    requests: int = 0
    done: int = 0
    """Answered in full."""
    good: int = 0
    """Of these, as fast as the plan's goal wants it."""
    refused: int = 0
    """Before anything was done for them."""
    failed: Counter[str] = Counter()
    """Ended by an error later, by its code."""
    moves: Counter[str] = Counter()
    """``retried`` and ``resumed``, see `failover.Moves`."""
    lost_workers: int = 0
    seconds: float = 0.0
    """Virtual, from the beginning to the last end."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    queueing_s: array[float] = array("d")
    """Until a slot was granted, of all that were. Sorted."""
    first_token_s: array[float] = array("d")
    """Likewise."""
    loads: Sequence[float] = ()
    """Tokens that each worker has read and written for its speed, the most first."""
    longest_queue: int = 0
    """At any worker at any time, those with slots included."""

    @property
    def goodput(self) -> float:
        """Good answers a second."""
        return self.good / self.seconds if self.seconds else 0.0

    @property
    def hot_spot(self) -> float:
        """The most loaded worker, in means."""
        total = sum(self.loads)
        return self.loads[0] * len(self.loads) / total if total else 1.0

    @property
    def cached(self) -> float:
        """Share of the prompts' tokens that were not read again."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


def quantile(ordered: Sequence[float], share: float) -> float:
    """The least of `ordered` that at least this share does not exceed; 0 of nothing."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, max(0, int(share * len(ordered) + 0.999999) - 1))]
