"""When a load will be done: by what it took before, else by what is told of it, else by what it has taken."""

from __future__ import annotations

import pytest

from fastchat_serve.worker.base import LoadProgress
from fastchat_serve.worker.loading import Loading


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loading(clock: Clock) -> Loading:
    loading = Loading(lambda stage, fraction=None: None, clock)
    loading.begin()
    return loading


def test_what_is_told_is_passed_on_and_remembered_until_the_end(clock: Clock) -> None:
    told: list[tuple[str, float | None]] = []
    loading = Loading(lambda stage, fraction=None: told.append((stage, fraction)), clock)
    loading("reading", 0.5)
    assert told == [("reading", 0.5)]
    assert loading.progress == LoadProgress("reading", 0.5)
    loading.end(done=True)
    assert loading.progress == LoadProgress()


def test_with_nothing_known_it_takes_as_long_again(loading: Loading, clock: Clock) -> None:
    assert loading.left_s == 1
    clock.now += 20
    assert loading.left_s == 20


def test_a_stage_is_judged_by_its_own_time(loading: Loading, clock: Clock) -> None:
    clock.now += 100
    loading("reading", 0.0)
    clock.now += 10
    loading("reading", 0.25)
    assert loading.left_s == 30
    loading("reading", 1.0)
    assert loading.left_s == 1


def test_what_it_took_before_counts_more(loading: Loading, clock: Clock) -> None:
    clock.now += 60
    loading.end(done=True)
    assert loading.took_s == 60
    loading.begin()
    clock.now += 20
    loading("reading", 0.99)
    assert loading.left_s == 40


def test_it_is_not_done_in_no_time_whatever_it_took_before(loading: Loading, clock: Clock) -> None:
    clock.now += 0.01
    loading.end(done=True)
    loading.begin()
    clock.now += 60
    assert (loading.left_s, loading.took_s) == (1, 1)


def test_one_that_was_given_up_says_nothing_of_the_next(loading: Loading, clock: Clock) -> None:
    clock.now += 60
    loading.end(done=False)
    loading.begin()
    assert (loading.left_s, loading.took_s) == (1, 1)
