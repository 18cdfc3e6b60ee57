"""Who gets the next request: pure functions from what is known of the workers to one of them.

What a policy sees and promises is in `policy.py`. Plugins may offer more (`hookspecs.register_policies`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from fastchat_serve.policy import Candidate, Draw, Policy

__all__ = ["POLICIES", "lottery", "power_of_two", "round_robin", "shortest_queue"]


def lottery(candidates: Sequence[Candidate], draw: Draw) -> int:
    """One draw, weighted by speed: FastChat's ``lottery``."""
    weights = [candidate.speed for candidate in candidates]
    indices = range(len(candidates))
    return draw.random.choices(indices, weights if sum(weights) > 0 else None)[0]


def shortest_queue(candidates: Sequence[Candidate], draw: Draw) -> int:
    """The least queue for its speed; a tie is broken by chance."""
    waits = [_wait(candidate) for candidate in candidates]
    least = min(waits)
    return draw.random.choice([index for index, wait in enumerate(waits) if wait == least])


def round_robin(candidates: Sequence[Candidate], draw: Draw) -> int:
    """One after the other."""
    return draw.turn % len(candidates)


def power_of_two(candidates: Sequence[Candidate], draw: Draw) -> int:
    """The better of two drawn at random (Mitzenmacher 2001): nearly `shortest_queue`, without herding
    when several processes decide on the same stale picture."""
    if len(candidates) == 1:
        return 0
    first, second = draw.random.sample(range(len(candidates)), 2)
    return first if _wait(candidates[first]) <= _wait(candidates[second]) else second


def _wait(candidate: Candidate) -> float:
    return candidate.queue_length / candidate.speed if candidate.speed > 0 else float("inf")


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "lottery": lottery,
        "shortest_queue": shortest_queue,
        "round_robin": round_robin,
        "power_of_two": power_of_two,
    }
)
