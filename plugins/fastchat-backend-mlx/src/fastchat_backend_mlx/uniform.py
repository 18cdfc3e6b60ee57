"""The random numbers of an answer: functions of its seed and of the position, and of nothing else.

They are the numbers of the hf backend as well, so that both draw alike from equal probabilities.
"""

from __future__ import annotations

__all__ = ["uniform"]

_MASK = 2**64 - 1


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1): two rounds of SplitMix64 (Steele, Lea, Flood 2014)."""
    return (_splitmix64(_splitmix64(seed & _MASK) + position & _MASK) >> 11) * 2.0**-53


def _splitmix64(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)
