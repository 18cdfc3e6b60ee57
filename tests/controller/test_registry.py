"""Which workers there are, and which models they serve."""

from __future__ import annotations

import time

from fastchat_serve.controller.registry import Registry
from fastchat_serve.engines.echo import EchoEngine
from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.local import LocalWorker


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
