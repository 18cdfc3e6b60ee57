"""Admission, turns and putting back: bounded memory, no deadlock, nobody forgotten, no queue behind a long prompt."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from fastchat_backend_hf.scheduler import Scheduler

BUDGET = 160


class Item:
    """As much of a sequence as the scheduler reads."""

    def __init__(self, prompt: int, limit: int = 1, order: tuple[int, int] = (0, 0), scored: bool = True) -> None:
        self.length, self.end, self.order, self.scored = prompt, prompt + limit, order, scored
        self.read = 0

    def __len__(self) -> int:
        return self.length

    @property
    def unread(self) -> int:
        return self.length - 1 - self.read

    @property
    def begun(self) -> bool:
        return self.read > 0


def rectangle_fits(lengths: Sequence[int]) -> bool:
    return len(lengths) * max(lengths, default=0) <= BUDGET


items = st.lists(
    st.tuples(st.integers(1, 80), st.integers(1, 80), st.integers(-1, 1), st.booleans()), min_size=1, max_size=30
)


def admit(scheduler: Scheduler[Item]) -> None:
    for item in scheduler.admit():
        item.read = 0
        scheduler.reading.append(item)


def join_complete(scheduler: Scheduler[Item]) -> None:
    for item in [item for item in scheduler.reading if not item.unread]:
        scheduler.reading.remove(item)
        scheduler.running.append(item)


def put_back(scheduler: Scheduler[Item], item: Item) -> None:
    if item in scheduler.reading:
        scheduler.reading.remove(item)
    else:
        scheduler.remove_row(scheduler.running.index(item))
    scheduler.add(item)


@given(items, st.integers(1, 8), st.integers(1, 200))
def test_every_sequence_ends_within_the_budget(
    wanted: list[tuple[int, int, int, bool]], max_batch: int, tokens: int
) -> None:
    scheduler: Scheduler[Item] = Scheduler(rectangle_fits, max_batch=max_batch)
    todo = [Item(prompt, limit, (priority, i), scored) for i, (prompt, limit, priority, scored) in enumerate(wanted)]
    for item in todo:
        scheduler.add(item)
    steps = 0
    while len(scheduler):
        steps += 1
        assert steps <= 2 * sum(item.end for item in todo) + len(todo), "somebody must move at every step"
        while (surplus := scheduler.surplus()) is not None:
            assert surplus.order == max(item.order for item in (*scheduler.running, *scheduler.reading))
            put_back(scheduler, surplus)
        assert rectangle_fits([len(item) for item in (*scheduler.running, *scheduler.reading)])
        admit(scheduler)
        assert len(scheduler.running) + len(scheduler.reading) <= max_batch
        assert scheduler.running or scheduler.reading
        join_complete(scheduler)
        if scheduler.reading:
            group, most = scheduler.next_block(tokens)
            assert len(group) == 1 or len(group) * max(item.unread for item in group) <= tokens
            assert len(group) == 1 or all(item.scored and not item.begun and item.unread <= most for item in group)
            for item in group:
                item.read += min(most, item.unread)
                scheduler.end_turn(item)
        join_complete(scheduler)
        for row in reversed(range(len(scheduler.running))):
            item = scheduler.running[row]
            item.length += 1
            item.read = item.length - 1
            if item.length == item.end:
                scheduler.remove_row(row)
    assert all(item.length == item.end for item in todo)


def test_the_latest_of_the_lowest_priority_is_put_back() -> None:
    scheduler: Scheduler[Item] = Scheduler(rectangle_fits, max_batch=8)
    scheduler.running += [Item(60, 9, order, True) for order in [(0, 1), (1, 2), (1, 3), (0, 4)]]
    assert scheduler.surplus() is scheduler.running[2]
    scheduler.remove_row(2)
    assert [item.order for item in scheduler.running] == [(0, 1), (1, 2), (0, 4)]


def test_a_prompt_being_read_is_put_back_before_an_earlier_answer() -> None:
    scheduler: Scheduler[Item] = Scheduler(rectangle_fits, max_batch=8)
    scheduler.running.append(Item(90, order=(0, 1)))
    scheduler.reading.append(Item(90, order=(0, 2)))
    assert scheduler.surplus() is scheduler.reading[0]


def test_a_short_prompt_is_not_stuck_behind_a_long_one() -> None:
    scheduler: Scheduler[Item] = Scheduler(lambda lengths: True, max_batch=8)
    long, short = Item(1000, order=(0, 1)), Item(20, order=(0, 2))
    scheduler.reading += [long, short]
    blocks = 0
    while short.unread:
        (item,), most = scheduler.next_block(16)
        item.read += min(most, item.unread)
        scheduler.end_turn(item)
        blocks += 1
    assert blocks == 4
    assert long.read == 32


def test_short_prompts_share_a_pass_and_a_long_one_has_its_own() -> None:
    scheduler: Scheduler[Item] = Scheduler(lambda lengths: True, max_batch=8)
    scheduler.reading += [Item(21), Item(500), Item(11), Item(31), Item(5, scored=False)]
    group, most = scheduler.next_block(64)
    assert [len(item) for item in group] == [21, 11]
    assert most == 20
    group, _ = scheduler.next_block(100)
    assert [len(item) for item in group] == [21, 11, 31]
