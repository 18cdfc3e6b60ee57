"""The policies as they read when every candidate is looked at: what the indexes are held against."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastchat_serve.controller.policies import BOUND, LEAST_BOUND
from fastchat_serve.policy import Candidate

__all__ = ["least", "most_known", "within_bounds"]


def least(candidates: Sequence[Candidate], amount: str) -> set[int]:
    """Those with the least of it for their speed."""
    values = [getattr(each, amount) / each.speed if each.speed > 0 else math.inf for each in candidates]
    return {index for index, value in enumerate(values) if value == min(values)}


def within_bounds(candidates: Sequence[Candidate]) -> set[int]:
    """Those that have not much more than their share; all if nobody has a speed."""
    speeds = math.fsum(each.speed for each in candidates)
    if speeds == 0:
        return set(range(len(candidates)))
    bounded = BOUND * (1 + sum(each.queue_length for each in candidates))
    return {
        index
        for index, each in enumerate(candidates)
        if each.speed > 0 and each.queue_length < max(LEAST_BOUND, math.ceil(bounded * (each.speed / speeds)))
    }


def most_known(candidates: Sequence[Candidate]) -> set[int]:
    """Those with the shortest queue of those that know most of those within bounds."""
    open_to = sorted(within_bounds(candidates))
    most = max(candidates[index].known for index in open_to)
    best = [index for index in open_to if candidates[index].known == most]
    return {best[number] for number in least([candidates[index] for index in best], "queue_length")}
