"""Who is next, and who gives way: against a model made of plain lists, and as properties."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from fastchat_serve.worker.fair_queue import FairQueue


class Guest:
    def __init__(self, tenant: str, priority: int = 0) -> None:
        self.tenant, self.priority = tenant, priority


def queue_of(*tenants: str) -> FairQueue[Guest]:
    queue = FairQueue[Guest]()
    for tenant in tenants:
        queue.add(Guest(tenant))
    return queue


def served(queue: FairQueue[Guest]) -> str:
    order = ""
    while queue:
        order += queue.next().tenant
    return order


def test_tenants_take_turns_however_many_requests_one_of_them_sent() -> None:
    assert served(queue_of(*"aaaabcc")) == "abcacaa"


def test_within_a_tenant_the_first_to_come_is_the_first_to_be_served() -> None:
    queue, guests = FairQueue[Guest](), [Guest("a") for _ in range(5)]
    for guest in guests:
        queue.add(guest)

    assert [queue.next() for _ in guests] == guests


def test_a_more_important_request_goes_before_all_turns() -> None:
    queue = queue_of(*"aab")
    queue.add(Guest("A", priority=-1))
    queue.add(Guest("z", priority=1))

    assert served(queue) == "Aabaz"


def test_who_leaves_is_forgotten_and_its_tenant_keeps_its_turn() -> None:
    queue, leaver = FairQueue[Guest](), Guest("a")
    for guest in (leaver, Guest("b"), Guest("a"), Guest("a")):
        queue.add(guest)
    queue.remove(leaver)

    assert served(queue) == "aba"


def test_a_stream_of_newcomers_starves_nobody() -> None:
    queue = queue_of(*"aaa")
    order = ""
    for newcomer in "bcdefghijklmnop":
        queue.add(Guest(newcomer))
        order += queue.next().tenant

    assert order.count("a") == 3
    assert order.index("b") < order.index("c") < order.index("d")


def test_the_tenant_with_the_most_gives_way_with_its_newest_least_important() -> None:
    queue = FairQueue[Guest]()
    guests = [Guest("a", 0), Guest("a", 5), Guest("a", 5), Guest("a", 0), Guest("b", 7)]
    for guest in guests:
        queue.add(guest)

    assert queue.gives_way(Guest("c")) is guests[2]
    assert queue.gives_way(Guest("c", 5)) is guests[2]


def test_nobody_gives_way_to_what_matters_less() -> None:
    assert queue_of(*"aaa").gives_way(Guest("b", priority=1)) is None


def test_nobody_gives_way_when_shares_are_equal_or_would_only_be_swapped() -> None:
    assert queue_of(*"abc").gives_way(Guest("d")) is None
    assert queue_of(*"aabb").gives_way(Guest("a")) is None
    assert queue_of(*"aab").gives_way(Guest("b")) is None
    assert queue_of(*"aaab").gives_way(Guest("b")) is not None
    assert queue_of().gives_way(Guest("a")) is None


@given(st.lists(st.sampled_from("abcde"), max_size=40))
def test_between_two_turns_of_a_tenant_every_other_that_waits_has_one(tenants: list[str]) -> None:
    order = served(queue_of(*tenants))

    assert Counter(order) == Counter(tenants)
    for one in set(tenants):
        turns = [position for position, tenant in enumerate(order) if tenant == one]
        for first, second in pairwise(turns):
            between = order[first + 1 : second]
            assert len(set(between)) == len(between)
            assert set(between) >= set(order[second:]) - {one}


@given(st.lists(st.sampled_from("abcdefg"), unique=True, min_size=1), st.integers(2, 12))
def test_who_asks_often_enough_of_a_full_queue_has_an_equal_share(tenants: list[str], places: int) -> None:
    """Whoever came first, and however often it asked."""
    queue, shares = FairQueue[Guest](), Counter[str]()
    for tenant in tenants:
        for _ in range(2 * places):
            guest = Guest(tenant)
            if shares.total() == places:
                if (leaver := queue.gives_way(guest)) is None:
                    continue
                queue.remove(leaver)
                shares[leaver.tenant] -= 1
            queue.add(guest)
            shares[tenant] += 1

    assert shares.total() == places
    assert max(shares.values()) - min(shares[tenant] for tenant in tenants) <= 1


class FairQueueMachine(RuleBasedStateMachine):
    """Against plain lists that are searched from end to end."""

    guests = Bundle("guests")

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue[Guest]()
        self.waiting: list[Guest] = []  # in order of arrival
        self.turns: dict[int, list[str]] = {}  # tenants of a priority, the next first

    def forget(self, guest: Guest) -> None:
        self.waiting.remove(guest)
        if not any((g.tenant, g.priority) == (guest.tenant, guest.priority) for g in self.waiting):
            self.turns[guest.priority].remove(guest.tenant)

    @rule(target=guests, tenant=st.sampled_from("abc"), priority=st.integers(-1, 1))
    def add(self, tenant: str, priority: int) -> Guest:
        guest = Guest(tenant, priority)
        self.queue.add(guest)
        self.waiting.append(guest)
        turns = self.turns.setdefault(priority, [])
        if tenant not in turns:
            turns.append(tenant)
        return guest

    @precondition(lambda self: self.waiting)
    @rule()
    def next(self) -> None:
        first = min(guest.priority for guest in self.waiting)
        tenant = self.turns[first][0]
        expected = next(guest for guest in self.waiting if (guest.tenant, guest.priority) == (tenant, first))
        self.turns[first].append(self.turns[first].pop(0))

        assert self.queue.next() is expected
        self.forget(expected)

    @rule(guest=consumes(guests))
    def leave(self, guest: Guest) -> None:
        if guest in self.waiting:
            self.queue.remove(guest)
            self.forget(guest)

    @rule(tenant=st.sampled_from("abcd"), priority=st.integers(-2, 2))
    def ask_who_gives_way(self, tenant: str, priority: int) -> None:
        counts = Counter(guest.tenant for guest in self.waiting)
        most = max(counts.values(), default=0)
        choices = []
        for largest in (name for name, count in counts.items() if count == most):
            worst = max(guest.priority for guest in self.waiting if guest.tenant == largest)
            newest = [g for g in self.waiting if (g.tenant, g.priority) == (largest, worst)][-1]
            choices.append(newest if most >= counts[tenant] + 2 and worst >= priority else None)

        assert self.queue.gives_way(Guest(tenant, priority)) in (choices or [None])

    @invariant()
    def it_is_empty_when_nobody_waits_and_keeps_nothing_then(self) -> None:
        assert bool(self.queue) == bool(self.waiting)
        if not self.waiting:
            kept = (self.queue._rounds, self.queue._priorities, self.queue._crowds._counts, self.queue._crowds._tenants)
            assert not any(kept)


TestFairQueue = FairQueueMachine.TestCase
