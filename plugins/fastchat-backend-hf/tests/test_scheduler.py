"""Admission and putting back: bounded memory, no deadlock, nobody forgotten."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastchat_backend_hf.kv import COLUMN_BLOCK, KvCache
from fastchat_backend_hf.scheduler import Scheduler

BUDGET = 160


class Item:
    """As much of a sequence as the scheduler reads."""

    def __init__(self, prompt: int, limit: int, order: tuple[int, int], scored: bool) -> None:
        self.length, self.end, self.order, self.scored = prompt, prompt + limit, order, scored

    def __len__(self) -> int:
        return self.length


def rectangle_fits(lengths: Sequence[int]) -> bool:
    return len(lengths) * max(lengths, default=0) <= BUDGET


items = st.lists(
    st.tuples(st.integers(1, 80), st.integers(1, 80), st.integers(-1, 1), st.booleans()), min_size=1, max_size=30
)


@settings(deadline=None)
@given(items, st.integers(1, 8), st.integers(1, 200))
def test_every_sequence_ends_within_the_budget(
    wanted: list[tuple[int, int, int, bool]], max_batch: int, prefill_tokens: int
) -> None:
    scheduler: Scheduler[Item] = Scheduler(rectangle_fits, max_batch=max_batch, prefill_tokens=prefill_tokens)
    todo = [Item(prompt, limit, (priority, i), scored) for i, (prompt, limit, priority, scored) in enumerate(wanted)]
    for item in todo:
        scheduler.add(item)
    steps = 0
    while len(scheduler):
        steps += 1
        assert steps <= sum(item.end for item in todo) + len(todo), "the first sequence must move at every step"
        while (row := scheduler.surplus()) is not None:
            assert scheduler.running[row].order == max(item.order for item in scheduler.running)
            scheduler.add(scheduler.remove_row(row))
        assert rectangle_fits([len(item) for item in scheduler.running])
        joining = scheduler.admissible()
        assert len(scheduler.running) + len(joining) <= max_batch
        assert len(joining) <= 1 or len(joining) * max(map(len, joining)) <= prefill_tokens
        assert len(joining) <= 1 or all(item.scored for item in joining)
        scheduler.running += joining
        assert scheduler.running
        for row in reversed(range(len(scheduler.running))):
            item = scheduler.running[row]
            item.length += 1
            if item.length == item.end:
                scheduler.remove_row(row)
    assert all(item.length == item.end for item in todo)


def test_the_latest_of_the_lowest_priority_is_put_back() -> None:
    scheduler: Scheduler[Item] = Scheduler(rectangle_fits, max_batch=8, prefill_tokens=1000)
    scheduler.running += [Item(60, 9, order, True) for order in [(0, 1), (1, 2), (1, 3), (0, 4)]]
    assert scheduler.surplus() == 2
    scheduler.remove_row(2)
    assert [item.order for item in scheduler.running] == [(0, 1), (1, 2), (0, 4)]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 60)), min_size=1, max_size=30))
def test_the_cache_never_grows_over_its_budget_and_keeps_what_it_holds(shapes: list[tuple[int, int]]) -> None:
    cache = KvCache(layers=1, max_rows=6, max_columns=60, budget_tokens=BUDGET)
    held = torch.zeros(0)
    for rows, columns in shapes:
        if not cache.fits([columns] * rows):
            continue
        cache.reserve(rows, columns)
        cache.span.place(first=0, count=rows, start=0, length=columns)
        states = torch.randn(rows, 2, columns, 4)
        cache.update(states, -states, 0)
        layer = cache.layers[0]
        assert layer.keys.shape[0] * layer.keys.shape[2] <= max(BUDGET, rows * columns)
        assert torch.equal(layer.keys[:rows, :, :columns], states)
        held = states
        lengths = torch.arange(rows) % columns
        cache.span.place_step(lengths, columns)
        step = torch.randn(rows, 2, 1, 4)
        keys, values = cache.update(step, -step, 0)
        assert keys.shape == (rows, 2, columns, 4)
        for row in range(rows):
            assert torch.equal(keys[row, :, lengths[row]], step[row, :, 0])
            assert torch.equal(values[row, :, lengths[row]], -step[row, :, 0])
            others = torch.arange(columns) != lengths[row]
            assert torch.equal(keys[row][:, others], held[row][:, others])


def test_fits_counts_whole_blocks() -> None:
    cache = KvCache(layers=1, max_rows=8, max_columns=64, budget_tokens=4 * COLUMN_BLOCK)
    assert cache.fits([1, 1, 1, 1])
    assert not cache.fits([1] * 5)
    assert cache.fits([2 * COLUMN_BLOCK, 1])
    assert not cache.fits([2 * COLUMN_BLOCK + 1, 1])
