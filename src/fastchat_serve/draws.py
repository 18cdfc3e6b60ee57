"""Where the chance in an answer comes from, for every engine whose sampler is its own.

A draw is a function of (seed, position) and of nothing else: not of batch-mates, nor of the worker, nor of time.
Engines that invert the cumulated distribution in the order of token ids with this number draw alike from equal
probabilities, whatever their library.
"""

from __future__ import annotations

__all__ = ["uniform"]

_MASK = 2**64 - 1


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) for the token at `position` of an answer: two rounds of SplitMix64 (Steele, Lea, Flood 2014,
    https://doi.org/10.1145/2714064.2660195)."""
    return (_splitmix64(_splitmix64(seed & _MASK) + position & _MASK) >> 11) * 2.0**-53


def _splitmix64(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)
