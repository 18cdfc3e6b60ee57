"""Slots and the queue before them, against the simplest model that could be right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import anyio
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from fastchat_serve.errors import Overloaded
from fastchat_serve.worker.slots import Slots, Ticket


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def slots_of(count: int, queue_limit: int) -> Slots:
    return Slots(count, queue_limit, Clock())


def never(reason: Overloaded) -> None:
    raise AssertionError(f"nobody had to give way: {reason}")


def take(slots: Slots, log: list[str], name: str, priority: int = 0, tenant: str = "") -> Ticket:
    ticket = Ticket(lambda: log.append(name), lambda _: log.append(f"{name} gave way"), priority, tenant)
    slots.acquire(ticket)
    return ticket


def test_a_free_slot_is_granted_at_once_and_no_more_than_there_are() -> None:
    slots, log = slots_of(2, 5), list[str]()
    for name in "abc":
        take(slots, log, name)

    assert log == ["a", "b"]
    assert (slots.running, slots.waiting) == (2, 1)


def test_a_slot_that_is_given_back_goes_to_the_first_of_the_lowest_priority() -> None:
    slots, log = slots_of(1, 9), list[str]()
    held = [take(slots, log, "first")]
    for name, priority in [("late", 5), ("a", 0), ("b", 0), ("urgent", -1), ("c", 0)]:
        held.append(take(slots, log, name, priority))
    names = ["first", "late", "a", "b", "urgent", "c"]

    for _ in names:
        slots.release(held[names.index(log[-1])])

    assert log == ["first", "urgent", "a", "b", "c", "late"]
    assert (slots.running, slots.waiting) == (0, 0)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    clock = Clock()
    slots, log = Slots(2, 2, clock), list[str]()
    held = [take(slots, log, name) for name in "abcd"]

    with pytest.raises(Overloaded, match="2 slots are busy and 2 requests wait") as refusal:
        take(slots, log, "e")
    assert refusal.value.retry_after_s == 2, "three to go before it, two at a time, a second each at first"

    for _ in range(50):  # it learns that a slot is held for 40 s
        clock.now += 40
        slots.release(held.pop(0))
        held.append(take(slots, log, "next"))
        assert 1 <= slots.expected_wait_s() <= 120
    assert slots.expected_wait_s() >= 60
    assert slots.expected_wait_s() == int(slots.expected_wait_s())


def test_without_a_queue_it_refuses_when_all_slots_are_taken() -> None:
    slots, log = slots_of(1, 0), list[str]()
    ticket = take(slots, log, "a")
    with pytest.raises(Overloaded):
        take(slots, log, "b")

    slots.release(ticket)
    take(slots, log, "c")

    assert log == ["a", "c"]


def test_who_leaves_the_queue_is_never_served_and_makes_room() -> None:
    slots, log = slots_of(1, 2), list[str]()
    first = take(slots, log, "first")
    leaver = take(slots, log, "leaver")
    take(slots, log, "second")

    slots.release(leaver)
    slots.release(leaver)
    take(slots, log, "third")
    slots.release(first)

    assert log == ["first", "second"]
    assert (slots.running, slots.waiting) == (1, 1)


def test_giving_back_twice_or_after_a_refusal_changes_nothing() -> None:
    slots, log = slots_of(1, 0), list[str]()
    held = take(slots, log, "a")
    refused = Ticket(lambda: log.append("refused"), never)
    with pytest.raises(Overloaded):
        slots.acquire(refused)

    slots.release(refused)
    slots.release(held)
    slots.release(held)

    assert (slots.running, slots.waiting, log) == (0, 0, ["a"])


def test_ten_thousand_that_give_their_slot_back_at_once_do_not_exhaust_the_stack() -> None:
    slots, served = slots_of(1, 10_000), list[int]()
    first = Ticket(lambda: None, never)
    slots.acquire(first)

    def gives_back(number: int) -> Ticket:
        def use() -> None:
            served.append(number)
            slots.release(ticket)

        ticket = Ticket(use, never)
        return ticket

    for number in range(10_000):
        slots.acquire(gives_back(number))

    slots.release(first)

    assert served == list(range(10_000))
    assert (slots.running, slots.waiting) == (0, 0)


def test_who_takes_a_slot_from_within_a_grant_waits_its_turn() -> None:
    slots, log = slots_of(1, 9), list[str]()
    first = take(slots, log, "first")

    def use() -> None:
        log.append("second")
        slots.release(second)
        take(slots, log, "nested")

    second = Ticket(use, never)
    slots.acquire(second)
    take(slots, log, "third")

    slots.release(first)

    assert log == ["first", "second", "third"]
    assert (slots.running, slots.waiting) == (1, 1)


def test_a_long_queue_whose_members_leave_does_not_keep_them() -> None:
    slots = slots_of(1, 100_000)
    slots.acquire(Ticket(lambda: None, never))
    for _ in range(20):
        tickets = [Ticket(lambda: None, never) for _ in range(100)]
        for ticket in tickets:
            slots.acquire(ticket)
        for ticket in tickets:
            slots.release(ticket)

    assert slots.waiting == 0
    assert not slots._queue


def test_a_tenant_with_more_than_its_share_makes_room_in_a_full_queue() -> None:
    slots, log = slots_of(1, 3), list[str]()
    for name in ("a", "a1", "a2", "a3"):
        take(slots, log, name, tenant="a")
    take(slots, log, "b1", tenant="b")
    with pytest.raises(Overloaded, match="3 requests wait"):
        take(slots, log, "b2", tenant="b")
    with pytest.raises(Overloaded):
        take(slots, log, "a4", tenant="a")

    assert log == ["a", "a3 gave way"]
    assert (slots.running, slots.waiting) == (1, 3)


def test_who_has_to_give_way_is_told_why_once_and_holds_nothing_any_more() -> None:
    slots, reasons = slots_of(1, 2), list[Overloaded]()
    tickets = [Ticket(lambda: None, reasons.append, tenant="a") for _ in range(3)]
    for ticket in tickets:
        slots.acquire(ticket)
    newcomer = Ticket(lambda: None, never, tenant="b")
    slots.acquire(newcomer)

    (reason,) = reasons
    assert (reason.status, reason.code) == (429, "queue_full")
    assert reason.retry_after_s == 3
    slots.release(tickets[2])
    assert (slots.running, slots.waiting) == (1, 2)
    slots.release(tickets[0])
    assert (tickets[1].held, newcomer.held, slots.running, slots.waiting) == (True, True, 1, 1)


def test_a_worker_that_never_gave_a_slot_back_yet_judges_by_how_long_they_are_held() -> None:
    clock = Clock()
    slots, log = Slots(2, 2, clock), list[str]()
    held = [take(slots, log, name) for name in "ab"]
    assert slots.expected_wait_s() == 1

    clock.now += 100

    assert slots.expected_wait_s() == 50
    for ticket in held:
        slots.release(ticket)
    clock.now += 3600
    assert slots.expected_wait_s() == 10, "what was learnt stays: a fifth of 100 s, for two slots"


@pytest.mark.anyio
async def test_any_number_may_wait_until_nothing_runs_and_nothing_waits() -> None:
    slots, log = slots_of(1, 9), list[str]()
    first, second = take(slots, log, "first"), take(slots, log, "second")
    idle = list[int]()

    async def wait(number: int) -> None:
        await slots.wait_idle()
        idle.append(number)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(wait, number)
                await anyio.wait_all_tasks_blocked()
            slots.release(first)
            await anyio.wait_all_tasks_blocked()
            assert idle == []
            slots.release(second)

    assert sorted(idle) == [0, 1, 2]


class SlotsMachine(RuleBasedStateMachine):
    """Counts, grants and refusals against a model that knows no order: `test_fair_queue.py` has that."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.count, self.limit = 2, 3
        self.slots = slots_of(self.count, self.limit)
        self.arrivals = 0
        self.waiting: dict[int, tuple[int, str]] = {}
        self.running: set[int] = set()
        self.gave_way: set[int] = set()

    def use(self, number: int) -> Callable[[], None]:
        def use() -> None:
            priority, _ = self.waiting.pop(number)
            assert all(priority <= other for other, _ in self.waiting.values()), "a more important one waits"
            self.running.add(number)

        return use

    def give_way(self, number: int) -> Callable[[Overloaded], None]:
        def give_way(reason: Overloaded) -> None:
            assert reason.retry_after_s is not None
            del self.waiting[number]
            self.gave_way.add(number)

        return give_way

    @rule(target=tickets, priority=st.integers(-2, 2), tenant=st.sampled_from("abc"))
    def acquire(self, priority: int, tenant: str) -> tuple[int, Ticket]:
        number = self.arrivals
        self.arrivals += 1
        ticket = Ticket(self.use(number), self.give_way(number), priority, tenant)
        full = len(self.running) == self.count and len(self.waiting) == self.limit
        assert self.slots.full == full
        before = dict(self.waiting)
        counts = Counter(other for _, other in before.values())
        self.waiting[number] = (priority, tenant)
        try:
            self.slots.acquire(ticket)
        except Overloaded:
            del self.waiting[number]
            assert full
            assert not ticket.held
        gone = before.keys() - self.waiting.keys() - self.running
        assert gone <= self.gave_way
        assert len(gone) <= full
        for other in gone:
            its_priority, its_tenant = before[other]
            assert its_priority >= priority
            assert counts[its_tenant] >= counts[tenant] + 2
        if full and not gone:
            assert number not in self.waiting
        return number, ticket

    def release(self, taken: tuple[int, Ticket]) -> None:
        number, ticket = taken
        self.running.discard(number)
        self.waiting.pop(number, None)
        self.slots.release(ticket)

    @rule(taken=consumes(tickets))
    def release_for_good(self, taken: tuple[int, Ticket]) -> None:
        self.release(taken)

    @rule(taken=tickets)
    def release_perhaps_again(self, taken: tuple[int, Ticket]) -> None:
        self.release(taken)

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert (self.slots.running, self.slots.waiting) == (len(self.running), len(self.waiting))
        assert len(self.running) == self.count or not self.waiting, "a slot is free, and somebody waits"


TestSlots = SlotsMachine.TestCase
