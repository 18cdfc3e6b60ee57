"""Who gets the next request: pure functions from what is known of the workers to one of them.

What a policy sees and promises is in `policy.py`. Plugins may offer more (`hookspecs.register_policies`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from types import MappingProxyType

from fastchat_serve.policy import Candidate, Draw, Policy

__all__ = [
    "BOUND",
    "LEAST_BOUND",
    "POLICIES",
    "least_work",
    "lottery",
    "power_of_two",
    "prefix",
    "round_robin",
    "session",
    "shortest_queue",
]

BOUND = 1.25
"""What holds on to one worker does so until that has this many times its share of all requests."""

LEAST_BOUND = 4
"""Or until it has so many: while there is little to do, nothing is gained by spreading it."""


def lottery(candidates: Sequence[Candidate], draw: Draw) -> int:
    """One draw, weighted by speed: FastChat's ``lottery``."""
    weights = [candidate.speed for candidate in candidates]
    indices = range(len(candidates))
    return draw.random.choices(indices, weights if sum(weights) > 0 else None)[0]


def shortest_queue(candidates: Sequence[Candidate], draw: Draw) -> int:
    """The least queue for its speed; a tie is broken by chance."""
    return _least([_per_speed(candidate, candidate.queue_length) for candidate in candidates], draw)


def least_work(candidates: Sequence[Candidate], draw: Draw) -> int:
    """The fewest tokens to read and write for its speed: a long prompt counts for more than a short one."""
    return _least([_per_speed(candidate, candidate.work) for candidate in candidates], draw)


def round_robin(candidates: Sequence[Candidate], draw: Draw) -> int:
    """One after the other."""
    return draw.turn % len(candidates)


def power_of_two(candidates: Sequence[Candidate], draw: Draw) -> int:
    """The better of two drawn at random (Mitzenmacher 2001): nearly `shortest_queue`, without herding
    when several processes decide on the same stale picture."""
    if len(candidates) == 1:
        return 0
    first, second = draw.random.sample(range(len(candidates)), 2)
    waits = [_per_speed(candidates[index], candidates[index].queue_length) for index in (first, second)]
    return first if waits[0] <= waits[1] else second


def prefix(candidates: Sequence[Candidate], draw: Draw) -> int:
    """Whoever has read the most of the prompt's beginning of late, within the bounds of `session`."""
    open_to = _within_bounds(candidates)
    most = max(candidates[index].known for index in open_to)
    best = [index for index in open_to if candidates[index].known == most]
    return best[shortest_queue([candidates[index] for index in best], draw)]


def session(candidates: Sequence[Candidate], draw: Draw) -> int:
    """The same worker for the same session, as long as it lives, and is not too busy.

    Rendezvous hashing, weighted by speed (Thaler and Ravishankar 1998; Schindelhauer and Schomaker 2005): when a worker
    comes or goes, only its own sessions move. With bounded loads (Mirrokni et al. 2018), so that no worker becomes a
    hot spot. Requests without a session go to the shortest queue.
    """
    if not draw.session:
        return shortest_queue(candidates, draw)
    return max(_within_bounds(candidates), key=lambda index: _claim(draw.session, candidates[index]))


def _least(values: Sequence[float], draw: Draw) -> int:
    least = min(values)
    return draw.random.choice([index for index, value in enumerate(values) if value == least])


def _per_speed(candidate: Candidate, amount: float) -> float:
    return amount / candidate.speed if candidate.speed > 0 else float("inf")


def _within_bounds(candidates: Sequence[Candidate]) -> list[int]:
    """Those that have not much more than their share; at least one."""
    speeds = sum(candidate.speed for candidate in candidates)
    if speeds == 0:
        return list(range(len(candidates)))
    bounded = BOUND * (1 + sum(candidate.queue_length for candidate in candidates))
    within = [
        index
        for index, candidate in enumerate(candidates)
        if candidate.speed > 0
        and candidate.queue_length < max(LEAST_BOUND, math.ceil(bounded * (candidate.speed / speeds)))
    ]
    return within or list(range(len(candidates)))


def _claim(session_: str, candidate: Candidate) -> float:
    """How strong this worker's claim to a session is: equal in every process, and fair by speed."""
    digest = blake2b(f"{candidate.id}\0{session_}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    chance = ((int.from_bytes(digest, "big") >> 12) + 0.5) / 2**52  # neither 0 nor 1
    return -candidate.speed / math.log(chance)


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "lottery": lottery,
        "shortest_queue": shortest_queue,
        "least_work": least_work,
        "round_robin": round_robin,
        "power_of_two": power_of_two,
        "prefix": prefix,
        "session": session,
    }
)
