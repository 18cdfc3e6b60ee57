"""Whatever changes in whatever order, the indexes say what a look at all workers would have said."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastchat_serve import Candidate, Capability
from fastchat_serve.controller.policies import BOUND, LEAST_BOUND, POLICIES
from fastchat_serve.controller.pools import Standing
from fastchat_serve.controller.registry import Registry
from fastchat_serve.controller.ring import COMPETITORS
from fastchat_serve.policy import Draw
from fastchat_serve.worker.base import WorkerState
from tests.controller import naive
from tests.straw import INFO, StrawWorker, info

LIMIT = 6
KINDS = (INFO, info(Capability.LOGPROBS), info(fingerprint="another"))
CHANGES = st.one_of(
    st.tuples(st.just("queue_length"), st.integers(0, LIMIT + 1)),
    st.tuples(st.just("speed"), st.sampled_from([0.0, 0.25, 1.0, 3.0, 1e-300, math.inf, math.nan])),
    st.tuples(st.just("state"), st.sampled_from([WorkerState.READY, WorkerState.DRAINING, WorkerState.LOST])),
    st.tuples(st.just("info"), st.sampled_from(KINDS)),
    st.tuples(st.just("work"), st.integers(-500, 500)),
    st.tuples(st.just("listed"), st.booleans()),
)
STEPS = st.lists(st.tuples(st.integers(0, 7), CHANGES), max_size=40)


def as_candidate(worker: StrawWorker, work: int, known: int) -> Candidate:
    speed = worker.speed if 0 < worker.speed < math.inf else 0.0
    return Candidate(worker.id, speed, worker.queue_length, work, known)


class Fleet:
    """A registry, and beside it the plainest picture of what it should know."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.workers = [StrawWorker(f"worker {number}", limit=LIMIT) for number in range(8)]
        self.listed: dict[str, int] = {}
        """By id, its work."""

    def change(self, number: int, what: str, value: object) -> None:
        worker = self.workers[number]
        if what == "listed":
            (self.add if value else self.remove)(worker)
        elif what != "work":
            worker.put(**{what: value})
        elif worker.id in self.listed:
            self.listed[worker.id] += int(value)  # type: ignore[call-overload]
            served = self.registry.look("m")
            assert served is not None
            next(member for member in served.members if member.worker is worker).charge(int(value))  # type: ignore[call-overload]

    def add(self, worker: StrawWorker) -> None:
        self.listed.setdefault(worker.id, 0)
        self.registry.add(worker)

    def remove(self, worker: StrawWorker) -> None:
        self.listed.pop(worker.id, None)
        self.registry.remove(worker.id)

    def expected(self, needed: frozenset[Capability], fingerprint: str, full: bool) -> list[Candidate]:
        by_id = {worker.id: worker for worker in self.workers}
        return [
            as_candidate(by_id[id_], work, known=0)
            for id_, work in self.listed.items()
            if by_id[id_].state is WorkerState.READY
            and needed <= by_id[id_].info.capabilities
            and fingerprint in ("", by_id[id_].info.fingerprint)
            and by_id[id_].full is full
        ]


@given(STEPS, STEPS, st.integers(0, 9))
@settings(max_examples=150)
def test_after_any_changes_all_is_known_that_a_look_at_all_workers_would_show(
    before: list[tuple[int, tuple[str, object]]], after: list[tuple[int, tuple[str, object]]], seed: int
) -> None:
    fleet, random = Fleet(), Random(seed)
    for number, change in before:
        fleet.change(number, *change)
    assert_all_is_known(fleet, random)  # from here on there are indexes, which follow
    for number, change in after:
        fleet.change(number, *change)
        assert_all_is_known(fleet, random)


def assert_all_is_known(fleet: Fleet, random: Random) -> None:
    for needed, fingerprint in (
        (frozenset(), ""),
        (frozenset({Capability.LOGPROBS}), ""),
        (frozenset[Capability](), INFO.fingerprint),
    ):
        served = fleet.registry.look("m")
        if served is None:
            assert not fleet.listed
            return
        pool = served.pool(needed, fingerprint)
        for standing, full in ((pool.open, False), (pool.full, True)):
            expected = fleet.expected(needed, fingerprint, full)
            assert list(standing) == expected
            if expected:
                assert_decides_as_if_it_had_looked(standing, random)


def assert_decides_as_if_it_had_looked(standing: Standing, random: Random) -> None:
    candidates = list(standing)
    assert standing.queue_lengths == sum(each.queue_length for each in candidates)
    assert standing.speeds == math.fsum(each.speed for each in candidates)
    assert standing.shortest_queue(random) in naive.least(candidates, "queue_length")
    assert standing.least_work(random) in naive.least(candidates, "work")
    assert candidates[standing.by_speed(random)].speed > 0 or not standing.speeds
    assert sorted(standing.claimants("a session")) == list(range(len(candidates)))
    assert POLICIES["round_robin"](standing, Draw(random, 5)) == 5 % len(candidates)
    within = naive.within_bounds(candidates)
    first = next((index for index in standing.claimants("s") if index in within and standing.speeds), None)
    assert first is None or POLICIES["session"](standing, Draw(random, 0, "s")) == first
    standing.known = {each.id: 512 - 256 * (number // 2) for number, each in enumerate(candidates[:4])}
    known = {id_: known for id_, known in standing.known.items() if known}
    standing.known = known
    assert POLICIES["prefix"](standing, Draw(random, 0)) in naive.most_known(list(standing))
    standing.known = {}


@given(st.lists(st.integers(0, 7), max_size=3), st.lists(st.tuples(st.integers(0, 7), st.integers(0, 5)), max_size=8))
@settings(max_examples=60)
def test_who_is_set_aside_for_a_decision_is_back_after_it(aside: list[int], queues: list[tuple[int, int]]) -> None:
    fleet, random = Fleet(), Random(1)
    for worker in fleet.workers:
        fleet.add(worker)
    assert_all_is_known(fleet, random)
    for number, queue in queues:
        fleet.change(number, "queue_length", queue)
    served = fleet.registry.look("m")
    assert served is not None
    standing = served.pool(frozenset()).open
    taken = standing.set_aside({f"worker {number}" for number in aside})
    left = [each for each in fleet.expected(frozenset(), "", full=False) if each.id not in {each.id for each in taken}]
    assert list(standing) == left
    assert_decides_as_if_it_had_looked(standing, random)
    for member in taken:
        standing.add(member)
    assert_all_is_known(fleet, random)


def test_what_requests_need_cannot_fill_the_memory() -> None:
    fleet = Fleet()
    for worker in fleet.workers:
        fleet.add(worker)
    served = fleet.registry.look("m")
    assert served is not None
    capabilities = sorted(Capability)
    for number in range(5000):
        served.pool(frozenset(each for place, each in enumerate(capabilities) if number >> place & 1))
    assert len(served.pools) <= 16
    assert len(served._answers) <= 256


# ---------------------------------------------------------------------------------- sessions of many workers


def standing_of(count: int, *, without: int | None = None, full: frozenset[int] = frozenset()) -> Standing:
    registry = Registry()
    for number in range(count):
        worker = StrawWorker(f"worker {number}", limit=10)
        worker.queue_length = 10 if number in full else 0
        if number != without:
            registry.add(worker)
    served = registry.look("m")
    assert served is not None
    return served.pool(frozenset()).open


def homes(standing: Standing, sessions: int = 3000) -> list[str]:
    return [standing[next(standing.claimants(f"session {number}"))].id for number in range(sessions)]


@pytest.mark.parametrize("count", [COMPETITORS, 40, 300])
def test_when_a_worker_goes_about_as_many_sessions_move_as_it_had(count: int) -> None:
    before, after = homes(standing_of(count)), homes(standing_of(count, without=7))
    moved = [was for was, now in zip(before, after, strict=True) if was != now]
    own = before.count("worker 7")
    assert moved.count("worker 7") == own
    assert len(moved) == own if count == COMPETITORS else len(moved) <= 4 * 3000 / count


def test_when_a_worker_is_full_no_session_moves_but_its_own() -> None:
    before, after = homes(standing_of(100)), homes(standing_of(100, full=frozenset({3, 9})))
    assert {was for was, now in zip(before, after, strict=True) if was != now} <= {"worker 3", "worker 9"}
    assert not {"worker 3", "worker 9"} & set(after)


def test_sessions_are_spread_over_many_workers_and_the_bound_holds() -> None:
    counts = Counter(homes(standing_of(200), sessions=20_000))
    assert len(counts) == 200
    assert max(counts.values()) <= 1.6 * 100

    registry = Registry()
    workers = [StrawWorker(f"worker {number}") for number in range(200)]
    for worker in workers:
        registry.add(worker)
    for number in range(4000):
        served = registry.look("m")
        assert served is not None
        standing = served.pool(frozenset()).open
        chosen = standing.members[POLICIES["session"](standing, Draw(Random(1), 0, f"session {number % 50}"))]
        chosen.worker.put(queue_length=chosen.worker.queue_length + 1)  # type: ignore[attr-defined]
    assert max(worker.queue_length for worker in workers) <= max(LEAST_BOUND, math.ceil(BOUND * 4000 / 200))
