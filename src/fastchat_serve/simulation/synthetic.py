"""Requests that are made up: when they come, how long they are, and what they have in common."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, count, islice
from random import Random
from typing import Final

from msgspec import Struct

from fastchat_serve.simulation.plan import Synthetic
from fastchat_serve.simulation.trace import Arrival, blocks_of

__all__ = ["make_up"]

_MOST_TOKENS: Final = 131_072
"""Of a prompt: what the longest contexts hold. A conversation ends before."""


class _Session(Struct):
    """A conversation that goes on."""

    name: str
    prefix: int
    tokens: int = 0
    """Said so far, by both."""


def make_up(wanted: Synthetic, seed: int) -> Iterator[Arrival]:
    """As many requests as are `wanted`, by time."""
    random = Random(f"requests {seed}")
    numbers = count()
    prefixes = _Prefixes(wanted.prefixes)
    sessions = [_Session(f"session {next(numbers)}", prefixes.draw(random)) for _ in range(wanted.sessions)]
    for at_s in islice(_times(wanted, random), wanted.requests):
        model = random.choice(wanted.models)
        fresh = _length(wanted.prompt_tokens, wanted.spread, random)
        output = _length(wanted.output_tokens, wanted.spread, random)
        if not sessions:
            prefix = prefixes.draw(random)
            shared = wanted.prefix_tokens if prefix else 0
            yield Arrival(at_s, model, shared + fresh, output, "", blocks_of(f"prefix {prefix}", shared))
            continue
        place = random.randrange(len(sessions))
        session = sessions[place]
        shared = wanted.prefix_tokens if session.prefix else 0
        said = session.tokens + fresh
        blocks = blocks_of(f"prefix {session.prefix}", shared) + blocks_of(session.name, said)
        yield Arrival(at_s, model, shared + said, output, session.name, blocks)
        session.tokens = said + output
        if random.random() * wanted.turns < 1 or shared + session.tokens + wanted.prompt_tokens > _MOST_TOKENS:
            sessions[place] = _Session(f"session {next(numbers)}", prefixes.draw(random))


class _Prefixes:
    """Numbers of beginnings from 1 on; the k-th is asked for 1/k as often as the first. 0: there are none."""

    def __init__(self, number: int) -> None:
        self._numbers = range(1, number + 1)
        self._weights = list(accumulate(1 / number for number in self._numbers))

    def draw(self, random: Random) -> int:
        return random.choices(self._numbers, cum_weights=self._weights)[0] if self._weights else 0


def _times(wanted: Synthetic, random: Random) -> Iterator[float]:
    """Of a Poisson process: of requests, or of bursts whose sizes are geometrically distributed."""
    bursty = wanted.arrivals == "bursty"
    rate = wanted.rate / wanted.burst if bursty else wanted.rate
    now = 0.0
    while True:
        now += random.expovariate(rate)
        size = 1
        while bursty and random.random() * wanted.burst >= 1:
            size += 1
        for _ in range(size):
            yield now


def _length(mean: int, sigma: float, random: Random) -> int:
    if sigma:
        mean = round(random.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma))
    return min(max(1, mean), _MOST_TOKENS)
