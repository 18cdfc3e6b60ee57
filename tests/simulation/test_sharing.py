"""Streams share a decoder equally, each at the speed that all together leave it."""

from __future__ import annotations

from random import Random

import pytest

from fastchat_serve.simulation.sharing import Sharing
from fastchat_serve.simulation.timeline import Timeline


class Decoder:
    """One, with a list of who was done when."""

    def __init__(self, alone: float, together: float) -> None:
        self.timeline = Timeline()
        self.done: dict[str, float] = {}
        self.sharing: Sharing[str] = Sharing(self.timeline, alone, together, self._note)

    def _note(self, stream: str) -> None:
        self.done[stream] = self.timeline.now

    def run(self) -> dict[str, float]:
        self.timeline.run(until=lambda: False)
        return self.done


def test_a_stream_alone_is_as_fast_as_a_stream_can_be() -> None:
    decoder = Decoder(alone=10, together=100)
    decoder.sharing.add("a", 50)
    assert decoder.run() == {"a": pytest.approx(5.0)}


def test_many_streams_share_what_there_is() -> None:
    decoder = Decoder(alone=10, together=20)
    for name in "abcd":
        decoder.sharing.add(name, 50)
    assert decoder.run() == dict.fromkeys("abcd", pytest.approx(10.0))


def test_who_comes_later_slows_the_others_and_who_goes_speeds_them_up() -> None:
    decoder = Decoder(alone=10, together=10)
    decoder.sharing.add("long", 100)
    decoder.timeline.at(2.0, decoder.sharing.add, "short", 10)
    # 20 tokens alone; then both at 5 a second until the short one is done at 4 s; then alone again.
    assert decoder.run() == {"short": pytest.approx(4.0), "long": pytest.approx(11.0)}


def test_who_leaves_early_is_told_how_far_it_got() -> None:
    decoder, got = Decoder(alone=10, together=10), []
    decoder.sharing.add("a", 100)
    decoder.sharing.add("b", 100)
    decoder.timeline.at(4.0, lambda: got.append(decoder.sharing.remove("a")))
    assert decoder.run() == {"b": pytest.approx(12.0)}
    assert got == [20]


@pytest.mark.parametrize("seed", range(20))
def test_it_is_as_exact_as_small_steps_would_be(seed: int) -> None:
    random, decoder = Random(seed), Decoder(alone=7, together=20)
    streams = {f"s{number}": (random.random() * 10, random.randrange(1, 60)) for number in range(12)}
    for name, (at, tokens) in streams.items():
        decoder.timeline.at(at, decoder.sharing.add, name, tokens)
    done = decoder.run()

    left, now, step, ends = dict(streams), 0.0, 1e-3, dict[str, float]()
    rest = {name: float(tokens) for name, (_, tokens) in streams.items()}
    while left:
        here = [name for name, (at, _) in left.items() if at <= now]
        for name in here:
            rest[name] -= min(7, 20 / len(here)) * step
            if rest[name] <= 0:
                ends[name] = now
                del left[name]
        now += step
    assert done == {name: pytest.approx(end, abs=0.05) for name, end in ends.items()}
