"""Slots and the queue before them, against the simplest model that could be right."""

from __future__ import annotations

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


def take(slots: Slots, log: list[str], name: str, priority: int = 0) -> Ticket:
    ticket = Ticket(lambda: log.append(name), priority)
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
    refused = Ticket(lambda: log.append("refused"))
    with pytest.raises(Overloaded):
        slots.acquire(refused)

    slots.release(refused)
    slots.release(held)
    slots.release(held)

    assert (slots.running, slots.waiting, log) == (0, 0, ["a"])


def test_ten_thousand_that_give_their_slot_back_at_once_do_not_exhaust_the_stack() -> None:
    slots, served = slots_of(1, 10_000), list[int]()
    first = Ticket(lambda: None)
    slots.acquire(first)

    def gives_back(number: int) -> Ticket:
        def use() -> None:
            served.append(number)
            slots.release(ticket)

        ticket = Ticket(use)
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

    second = Ticket(use)
    slots.acquire(second)
    take(slots, log, "third")

    slots.release(first)

    assert log == ["first", "second", "third"]
    assert (slots.running, slots.waiting) == (1, 1)


def test_a_long_queue_whose_members_leave_does_not_keep_them() -> None:
    slots = slots_of(1, 100_000)
    slots.acquire(Ticket(lambda: None))
    for _ in range(20):
        tickets = [Ticket(lambda: None) for _ in range(100)]
        for ticket in tickets:
            slots.acquire(ticket)
        for ticket in tickets:
            slots.release(ticket)

    assert slots.waiting == 0
    assert len(slots._queue) <= 16


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
    """Against a model that sorts a plain list."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.count, self.limit = 2, 3
        self.slots = slots_of(self.count, self.limit)
        self.arrivals = 0
        self.running: set[int] = set()
        self.queue: list[tuple[int, int]] = []
        self.granted: set[int] = set()

    def use(self, number: int) -> Callable[[], None]:
        return lambda: self.granted.add(number)

    def grant(self) -> None:
        while self.queue and len(self.running) < self.count:
            self.running.add(min(self.queue)[1])
            self.queue.remove(min(self.queue))

    @rule(target=tickets, priority=st.integers(-2, 2))
    def acquire(self, priority: int) -> tuple[int, Ticket]:
        number = self.arrivals
        self.arrivals += 1
        ticket = Ticket(self.use(number), priority)
        if len(self.running) == self.count and len(self.queue) == self.limit:
            with pytest.raises(Overloaded):
                self.slots.acquire(ticket)
        else:
            self.slots.acquire(ticket)
            self.queue.append((priority, number))
            self.grant()
        return number, ticket

    def release(self, taken: tuple[int, Ticket]) -> None:
        number, ticket = taken
        self.slots.release(ticket)
        self.running.discard(number)
        self.granted.discard(number)
        self.queue = [entry for entry in self.queue if entry[1] != number]
        self.grant()

    @rule(taken=consumes(tickets))
    def release_for_good(self, taken: tuple[int, Ticket]) -> None:
        self.release(taken)

    @rule(taken=tickets)
    def release_perhaps_again(self, taken: tuple[int, Ticket]) -> None:
        self.release(taken)

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.granted == self.running
        assert (self.slots.running, self.slots.waiting) == (len(self.running), len(self.queue))


TestSlots = SlotsMachine.TestCase
