"""Who gets the next request: pure functions from what is known of the workers to one of them.

What a policy sees and promises is in `policy.py`. None of these looks at all candidates, so that a decision among
thousands costs what one among three does. Plugins may offer more (`hookspecs.register_policies`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from fastchat_serve.policy import Candidate, Candidates, Draw, Policy

__all__ = [
    "BOUND",
    "LEAST_BOUND",
    "POLICIES",
    "bounds",
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


def lottery(candidates: Candidates, draw: Draw) -> int:
    """One draw, weighted by speed: FastChat's ``lottery``."""
    return candidates.by_speed(draw.random)


def shortest_queue(candidates: Candidates, draw: Draw) -> int:
    """The least queue for its speed; a tie is broken by chance."""
    return candidates.shortest_queue(draw.random)


def least_work(candidates: Candidates, draw: Draw) -> int:
    """The fewest tokens to read and write for its speed: a long prompt counts for more than a short one."""
    return candidates.least_work(draw.random)


def round_robin(candidates: Candidates, draw: Draw) -> int:
    """One after the other."""
    return draw.turn % len(candidates)


def power_of_two(candidates: Candidates, draw: Draw) -> int:
    """The better of two drawn at random (Mitzenmacher 2001): nearly `shortest_queue`, without herding
    when several processes decide on the same stale picture."""
    count = len(candidates)
    if count == 1:
        return 0
    first, second = draw.random.randrange(count), draw.random.randrange(count - 1)
    second += second >= first
    return first if _wait(candidates[first]) <= _wait(candidates[second]) else second


def prefix(candidates: Candidates, draw: Draw) -> int:
    """Whoever has read the most of the prompt's beginning of late, within the bounds of `session`.

    Of equals, and where nobody knows it, the shortest queue decides; that is always within the bounds.
    """
    within = bounds(candidates)
    most, best = 0, list[tuple[float, int]]()
    for index in candidates.readers():
        candidate = candidates[index]
        if candidate.known < most:
            break
        if within(candidate):
            most = candidate.known
            best.append((_wait(candidate), index))
    if not best:
        return candidates.shortest_queue(draw.random)
    shortest = min(wait for wait, _ in best)
    return draw.random.choice([index for wait, index in best if wait == shortest])


def session(candidates: Candidates, draw: Draw) -> int:
    """The same worker for the same session, as long as it lives, and is not too busy.

    The strongest claim wins (rendezvous hashing, Thaler and Ravishankar 1998), with bounded loads (Mirrokni et al.
    2018), so that no worker becomes a hot spot. Requests without a session go to the shortest queue.
    """
    if draw.session:
        within = bounds(candidates)
        for index in candidates.claimants(draw.session):
            if within(candidates[index]):
                return index
    return candidates.shortest_queue(draw.random)


def bounds(candidates: Candidates) -> Callable[[Candidate], bool]:
    """Tells of a candidate whether it has not much more than its share. At least one has not, if one has a speed."""
    bounded, speeds = BOUND * (1 + candidates.queue_lengths), candidates.speeds

    def within(candidate: Candidate) -> bool:
        if candidate.speed <= 0:
            return False
        queue = candidate.queue_length
        return queue < LEAST_BOUND or queue < bounded * (candidate.speed / speeds)

    return within


def _wait(candidate: Candidate) -> float:
    return candidate.queue_length / candidate.speed if candidate.speed > 0 else math.inf


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
