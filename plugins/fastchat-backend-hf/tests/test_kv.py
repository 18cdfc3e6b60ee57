"""The batch's cache: rows keep what they hold while others come, grow and go, and memory stays within its bound."""

from __future__ import annotations

import itertools
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.cache_utils import DynamicCache

from fastchat_backend_hf import shelves
from fastchat_backend_hf.cells import Layout
from fastchat_backend_hf.kv import KvCache

BUDGET = 160
HEADS, WIDTH, LAYERS = 2, 4, 2


def a_layout() -> Layout:
    cache = DynamicCache()
    for layer in range(LAYERS):
        cache.update(torch.zeros(1, HEADS, 1, WIDTH), torch.zeros(1, HEADS, 1, WIDTH), layer)
    return Layout(cache)


LAYOUT = a_layout()


def a_cache(*, max_columns: int = 64, least_columns: int = 8, told: list[int] | None = None) -> KvCache:
    return KvCache(
        LAYOUT,
        max_rows=6,
        max_columns=max_columns,
        budget_tokens=BUDGET,
        make_room=([] if told is None else told).append,
        least_columns=least_columns,
    )


class Held:
    """What a row should hold: per part ``[heads, tokens, width]``."""

    def __init__(self, length: int) -> None:
        self.parts = [torch.randn(HEADS, length, WIDTH) for _ in range(2 * LAYERS)]

    def add_to(self, cache: KvCache) -> None:
        length = self.parts[0].shape[1]
        cells = LAYOUT.empty(length)
        for number, part in enumerate(self.parts):
            cells.part(number)[:] = part
        cache.add(cells, length)

    def append(self, states: list[Tensor], row: int) -> None:
        self.parts = [torch.cat([part, new[row]], 1) for part, new in zip(self.parts, states, strict=True)]

    def is_in(self, cache: KvCache, row: int) -> bool:
        found = cache.copy_out(row, 0, cache.lengths[row])
        return all(torch.equal(found.part(number), part) for number, part in enumerate(self.parts))


def step(cache: KvCache, held: list[Held]) -> None:
    """One token for every row, by either road into the model; checks what attention sees."""
    cache.extend()
    lengths = cache.place(torch.device("cpu"))
    assert lengths.tolist() == cache.lengths
    states = [torch.randn(len(held), HEADS, 1, WIDTH) for _ in range(2 * LAYERS)]
    for row, one in enumerate(held):
        one.append(states, row)
    for layer in range(LAYERS):
        keys, values = states[2 * layer : 2 * layer + 2]
        if cache.attends:
            assert cache.update(keys, values, layer) == (keys, values)
            query = torch.arange(float(len(held))).reshape(-1, 1, 1, 1)
            seen = cache.attend(layer, query, keys, values, seen_sum)
            want = [one.parts[2 * layer].sum() + 2 * one.parts[2 * layer + 1].sum() + i for i, one in enumerate(held)]
            assert torch.allclose(seen.flatten(), torch.stack(want), atol=1e-3)
        else:
            found = cache.update(keys, values, layer)
            for row, one in enumerate(held):
                for part, all_rows in zip(one.parts[2 * layer :], found, strict=False):
                    assert torch.equal(all_rows[row, :, : part.shape[1]], part)
    cache.advance()


def seen_sum(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Stands for attention: adds up all that is not masked, and the row's number."""
    assert len(query) == len(keys) == len(values)
    seen = keys + 2 * values
    if mask is not None:
        seen = seen * mask[:, :, 0, :, None]  # as softmax does: a masked NaN is still one
    return query + seen.sum((1, 2, 3))[:, None, None, None]


actions = st.lists(st.tuples(st.sampled_from(["add", "step", "step", "drop"]), st.integers(0, 60)), max_size=40)


@given(actions, st.booleans())
def test_rows_keep_what_they_hold_within_the_budget(todo: list[tuple[str, int]], attends: bool) -> None:
    told: list[int] = []
    cache = a_cache(told=told)
    cache.attends = attends
    held: list[Held] = []
    for action, number in todo:
        if action == "add" and len(held) < 6 and cache.fits([length + 1 for length in (*cache.lengths, number)]):
            held.append(Held(number))
            held[-1].add_to(cache)
        elif action == "drop" and held:
            row = number % len(held)
            cache.drop(row)
            held[row] = held[-1]
            held.pop()
        elif action == "step" and held and max(cache.lengths) < 64 and cache.fits([n + 1 for n in cache.lengths]):
            step(cache, held)
        assert cache.used_tokens <= cache.tokens <= BUDGET
        assert not told or told[-1] <= BUDGET + 64, "at most one row may be in two places for a moment"
        assert len(cache) == len(held)
        assert all(one.is_in(cache, row) for row, one in enumerate(held))
    while held:
        cache.drop(0)
        held[0] = held[-1]
        held.pop()
    assert cache.tokens == 0


def test_a_long_row_does_not_make_room_for_short_ones_longer() -> None:
    cache = a_cache()
    Held(60).add_to(cache)
    for _ in range(4):
        Held(5).add_to(cache)
    assert cache.used_tokens == 64 + 4 * 8
    assert cache.fits([61, *[6] * 12])
    assert not cache.fits([61, *[6] * 13])


def test_a_newcomer_moves_nobody() -> None:
    cache = a_cache()
    for _ in range(3):
        Held(5).add_to(cache)
    Held(5).add_to(cache)  # there is room for four by now
    places = [part.data_ptr() for part in cache._rows[0].shelf.parts]
    Held(40).add_to(cache)
    assert places == [part.data_ptr() for part in cache._rows[0].shelf.parts]


def test_a_context_that_is_no_power_of_two_bounds_the_last_shelf() -> None:
    cache = a_cache(max_columns=BUDGET, least_columns=64)
    assert cache.fits([150])
    assert not cache.fits([150, 1])
    cache.add(None, 0)
    assert cache.used_tokens == 64


@pytest.mark.parametrize("attends", [True, False])
def test_what_a_scrubbed_row_held_does_not_leak_to_its_heir(attends: bool) -> None:
    cache = a_cache()
    cache.attends = attends
    held = [Held(7), Held(6), Held(2)]
    for one in held:
        one.add_to(cache)
    for part in cache._rows[0].shelf.parts:
        part[0] = torch.nan
    cache.scrub(0)
    cache.drop(0)
    held = [held[2], held[1]]
    step(cache, held)
    rows = cache._rows[0].shelf.parts[0][:2, :, :7]
    assert rows.isfinite().all()


def test_the_smallest_shelf_is_smaller_where_the_budget_is_small() -> None:
    """`fits` counts columns: with few of them short answers would wait for each other."""
    assert a_cache(least_columns=256, max_columns=4096).fits([60, 60])
    roomy = KvCache(LAYOUT, max_rows=6, max_columns=4096, budget_tokens=6 * 256, make_room=[].append)
    roomy.add(None, 0)
    assert roomy.used_tokens == 256


def test_nothing_holds_on_to_a_shelf_that_is_gone() -> None:
    cache = a_cache()
    held = [Held(5), Held(40)]
    for one in held:
        one.add_to(cache)
    step(cache, held)
    gone = weakref.ref(cache._rows[1].shelf.parts[0])
    cache.drop(1)
    assert gone() is None


def test_resizing_that_failed_halfway_is_completed_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = a_cache()
    held = [Held(5)]
    held[0].add_to(cache)
    zeros, calls = shelves._zeros, itertools.count()

    def fail_once(rows: int, like: Tensor) -> Tensor:
        if next(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return zeros(rows, like)

    monkeypatch.setattr(shelves, "_zeros", fail_once)
    newcomer = Held(6)
    with pytest.raises(torch.OutOfMemoryError):
        newcomer.add_to(cache)
    assert cache.tokens == 8
    newcomer.add_to(cache)
    assert [one.is_in(cache, row) for row, one in enumerate([*held, newcomer])] == [True, True]


def test_a_cache_told_to_shrink_gives_back_what_it_can_until_it_is_empty() -> None:
    cache = a_cache()
    for _ in range(3):
        Held(5).add_to(cache)
    assert cache.tokens > cache.used_tokens
    assert cache.shrink()
    assert cache.tokens == cache.used_tokens
    assert not cache.shrink()
    while len(cache):
        cache.drop(0)
    assert cache.shrink()
