"""Which workers there are, and which models they serve."""

from __future__ import annotations

import time
from random import Random

import pytest

from fastchat_serve.controller import registry as registry_
from fastchat_serve.controller.members import Seen
from fastchat_serve.controller.registry import Registry
from fastchat_serve.engines.echo import EchoEngine
from fastchat_serve.errors import ModelNotFound, Unavailable
from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.local import LocalWorker
from tests.straw import StrawWorker


def a_worker(*names: str, state: WorkerState = WorkerState.READY) -> LocalWorker:
    worker = LocalWorker(EchoEngine(), names=names)
    worker.state = state
    return worker


def test_a_worker_is_found_under_all_its_names() -> None:
    registry = Registry()
    one, two = a_worker("a", "b"), a_worker("b")
    registry.add(one)
    registry.add(two)

    assert registry.models == ("a", "b")
    assert registry.workers == (one, two)
    assert registry.serving("a") == (one,)
    assert registry.serving("b") == (one, two)
    assert registry.serving("c") == ()


def test_one_with_the_same_id_takes_the_others_place() -> None:
    registry = Registry()
    old, new = a_worker("a"), a_worker("b")
    new.id = old.id
    registry.add(old)
    registry.add(new)

    assert (registry.models, registry.workers) == (("b",), (new,))


def test_who_is_removed_is_not_found_any_more() -> None:
    registry = Registry()
    worker = a_worker("a")
    registry.add(worker)

    registry.remove(worker.id)
    registry.remove(worker.id)

    assert (registry.models, registry.workers, registry.serving("a")) == ((), (), ())


def test_a_model_whose_last_worker_left_counts_for_a_while_as_one_that_comes_back() -> None:
    now = 0.0
    registry = Registry(clock=lambda: now)
    one, other = a_worker("a"), a_worker("a")
    registry.add(one)
    registry.add(other)
    registry.remove(one.id)
    registry.remove(other.id)

    assert isinstance(registry.missing("a"), Unavailable)
    assert isinstance(registry.missing("b"), ModelNotFound)
    now = 60.0
    assert isinstance(registry.missing("a"), ModelNotFound)


def test_a_model_that_was_unloaded_is_gone_at_once() -> None:
    registry = Registry()
    worker = a_worker("a")
    registry.add(worker)
    registry.remove(worker.id, for_good=True)

    assert isinstance(registry.missing("a"), ModelNotFound)


def test_a_name_that_a_worker_has_no_more_is_gone_at_once() -> None:
    registry = Registry()
    worker = a_worker("a", "b")
    registry.add(worker)
    worker.names = ("a",)
    registry.add(worker)

    assert isinstance(registry.missing("b"), ModelNotFound)


def test_workers_are_listed_in_whatever_state_they_are() -> None:
    registry = Registry()
    for state in WorkerState:
        registry.add(a_worker("a", state=state))

    assert {worker.state for worker in registry.serving("a")} == set(WorkerState)


def test_it_is_ready_when_every_model_has_a_worker_that_is() -> None:
    registry = Registry()
    assert not registry.ready, "nothing is served"

    a, b = a_worker("a"), a_worker("b", state=WorkerState.LOADING)
    registry.add(a)
    registry.add(b)
    assert not registry.ready

    b.state = WorkerState.READY
    assert registry.ready
    a.state = WorkerState.FAILED
    assert not registry.ready
    registry.add(a_worker("a"))
    assert registry.ready


def test_a_model_is_as_old_as_its_first_listing() -> None:
    registry = Registry()
    before = int(time.time())
    first = a_worker("a")
    registry.add(first)
    since = registry.since("a")
    registry.remove(first.id)
    registry.add(a_worker("a"))

    assert before <= since <= time.time()
    assert registry.since("a") == since


def test_adapters_are_models_once_they_are_known_and_the_order_of_listing_stays() -> None:
    registry = Registry()
    workers = [StrawWorker("a"), StrawWorker("b"), StrawWorker("c")]
    for worker in workers:
        registry.add(worker)
    for worker in (workers[2], workers[0]):
        worker.adapters = ("lora",)
        registry.add(worker)
    assert registry.serving("lora") == (workers[0], workers[2])
    assert registry.serving("m") == tuple(workers)

    workers[0].adapters = ()
    registry.add(workers[0])
    registry.remove("c")
    assert registry.models == ("m",)


def test_two_thousand_that_come_at_once_are_listed_in_a_moment() -> None:
    registry, began = Registry(), time.process_time()
    for number in range(2000):
        registry.add(StrawWorker(f"worker {number}"))
        registry.serving("m")
        registry.look("m")

    assert len(registry.serving("m")) == 2000
    assert time.process_time() - began < 0.5


def test_what_a_worker_is_worth_is_seen_when_it_tells_of_a_change() -> None:
    registry, worker = Registry(), StrawWorker("a", limit=2)
    registry.add(worker)
    pool = registry.look("m").pool(frozenset())  # type: ignore[union-attr]
    assert (len(pool.open), len(pool.full)) == (1, 0)

    worker.put(queue_length=2)
    registry.look("m")
    assert (len(pool.open), len(pool.full)) == (0, 1)
    worker.state = WorkerState.LOST
    registry.look("m")
    assert (len(pool.open), len(pool.full)) == (0, 0)


def test_a_worker_that_is_not_listed_any_more_changes_nothing() -> None:
    registry, old, new = Registry(), StrawWorker("a"), StrawWorker("a")
    registry.add(old)
    old.put(queue_length=1)
    registry.add(new)
    old.put(queue_length=5)
    assert [seen.queue_length for _, seen in seen_now(registry)] == [0]

    registry.remove("a")
    new.put(queue_length=5)
    assert registry.look("m") is None


def test_workers_that_come_and_go_leave_nothing_behind_where_nobody_dispatches() -> None:
    registry = Registry()
    for number in range(50):
        worker = StrawWorker(f"worker {number}")
        registry.add(worker)
        worker.put(queue_length=1)
        registry.remove(worker.id)
        worker.put(queue_length=2)
    assert not registry._changed


def seen_now(registry: Registry) -> list[tuple[str, Seen]]:
    registry.look("m")
    return registry.as_seen("m", registry.changes) or []


def test_the_past_can_be_seen_again_as_it_was() -> None:
    registry, workers, pictures = Registry(), [StrawWorker(f"worker {number}") for number in range(6)], []
    random = Random(1)
    for _ in range(300):
        worker = random.choice(workers)
        match random.randrange(5):
            case 0:
                registry.add(worker)
            case 1:
                registry.remove(worker.id)
            case 2:
                worker.state = random.choice([WorkerState.READY, WorkerState.LOST])
            case _:
                worker.put(queue_length=random.randrange(9))
        now = sorted(seen_now(registry), key=by_id)
        pictures.append((registry.changes, now))
    registry.add(StrawWorker("elsewhere", "another model"))
    for changes, picture in pictures:
        assert sorted(registry.as_seen("m", changes) or [], key=by_id) == picture


def by_id(seen: tuple[str, Seen]) -> str:
    return seen[0]


def test_what_is_too_long_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_, "_MOST_REMEMBERED", 5)
    registry, worker = Registry(), StrawWorker("a")
    registry.add(worker)
    for number in range(9):
        worker.put(queue_length=number)
        registry.look("m")
    assert registry.as_seen("m", registry.changes - 5) is not None
    assert registry.as_seen("m", registry.changes - 6) is None
