"""Requests that are made up: as many, as often, as long and as much alike as is wanted."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

import pytest

from fastchat_serve.simulation.plan import Synthetic
from fastchat_serve.simulation.synthetic import make_up
from fastchat_serve.simulation.trace import Arrival


def made(seed: int = 1, **wanted: Any) -> list[Arrival]:
    return list(make_up(Synthetic(models=("m",), **{"requests": 5000, **wanted}), seed))


@pytest.mark.parametrize("arrivals", ["poisson", "bursty"])
def test_they_come_as_often_and_are_as_long_as_is_wanted(arrivals: str) -> None:
    found = made(rate=50.0, arrivals=arrivals, prompt_tokens=300, output_tokens=80)
    assert len(found) == 5000
    assert found == sorted(found, key=lambda each: each.at_s)
    assert found[-1].at_s == pytest.approx(100, rel=0.2)
    assert statistics.mean(each.prompt_tokens for each in found) == pytest.approx(300, rel=0.1)
    assert statistics.mean(each.output_tokens for each in found) == pytest.approx(80, rel=0.1)


def test_bursts_are_as_large_as_is_wanted() -> None:
    sizes = Counter(each.at_s for each in made(arrivals="bursty", burst=8.0))
    assert statistics.mean(sizes.values()) == pytest.approx(8, rel=0.15)
    assert set(Counter(each.at_s for each in made()).values()) == {1}


def test_without_spread_all_are_alike() -> None:
    assert {(each.prompt_tokens, each.output_tokens) for each in made(spread=0.0)} == {(800, 200)}


def test_some_beginnings_are_shared_more_often_than_others() -> None:
    found = Counter(each.blocks for each in made(prefixes=5, prefix_tokens=256))
    assert len(found) == 5
    assert {len(blocks) for blocks in found} == {2}
    (_, most), *_, (_, least) = found.most_common()
    assert 3 < most / least < 8


def test_each_turn_of_a_conversation_holds_all_before_it() -> None:
    before: dict[str, Arrival] = {}
    turns = Counter[str]()
    for each in made(sessions=10, turns=4, prefixes=2, prompt_tokens=200):
        turns[each.session] += 1
        if (last := before.get(each.session)) is not None:
            assert each.blocks[: len(last.blocks)] == last.blocks
            assert each.prompt_tokens > last.prompt_tokens + last.output_tokens
        before[each.session] = each
    assert statistics.mean(turns.values()) == pytest.approx(4, rel=0.2)


def test_one_seed_is_one_list() -> None:
    assert made(seed=1) == made(seed=1) != made(seed=2)
