"""Why a request went where it went, told afterwards as it was then."""

from __future__ import annotations

import time
from random import Random

import pytest

from fastchat_serve import Capability, Policy
from fastchat_serve.controller import decisions as decisions_
from fastchat_serve.controller.dispatcher import Dispatcher
from fastchat_serve.controller.explain import MOST_SHOWN, explain
from fastchat_serve.controller.policies import POLICIES, shortest_queue
from fastchat_serve.controller.registry import Registry
from fastchat_serve.errors import EngineError
from fastchat_serve.protocol.decisions import DecisionCard
from fastchat_serve.worker.base import WorkerState
from tests.sinks import Remembering, a_request
from tests.straw import StrawWorker, info


def fleet(*workers: StrawWorker, policy: Policy = shortest_queue) -> Dispatcher:
    registry = Registry()
    for worker in workers:
        registry.add(worker)
    return Dispatcher(registry, policy, Random(1))


def ask(dispatcher: Dispatcher, request_id: str = "r", **request: object) -> Remembering:
    sink = Remembering()
    dispatcher.start("m", a_request(id=request_id, **request), sink)  # type: ignore[arg-type]
    return sink


def told(dispatcher: Dispatcher, request_id: str = "r") -> list[DecisionCard]:
    return [explain(decision, dispatcher.registry) for decision in dispatcher.decisions.of(request_id)]


def test_the_candidates_are_told_as_they_were_then() -> None:
    busy, idle = StrawWorker("busy"), StrawWorker("idle", speed=2.0)
    dispatcher = fleet(busy, idle)
    busy.put(queue_length=4)
    began = time.time()
    ask(dispatcher)
    for _ in range(30):
        ask(dispatcher, "another")
    busy.state = WorkerState.LOST
    dispatcher.registry.remove("idle")

    (card,) = told(dispatcher)
    assert (card.chosen, card.policy, card.move, card.others) == ("idle", "shortest_queue", "", 0)
    assert [(each.id, each.queue_length, each.score) for each in card.candidates] == [
        ("idle", 0, 0.0),
        ("busy", 4, 4.0),
    ]
    assert "queue" in card.scores
    assert began <= card.at <= time.time()


def test_it_is_told_who_was_not_asked_and_why() -> None:
    workers = [StrawWorker("away"), StrawWorker("full", limit=0), StrawWorker("open"), StrawWorker("other")]
    workers.append(StrawWorker("unable", info=info(Capability.LOGPROBS)))
    workers[0].state = WorkerState.DRAINING
    dispatcher = fleet(*workers)
    ask(dispatcher, logprobs=1)

    (card,) = told(dispatcher)
    standings = {each.id: each.standing for each in card.candidates}
    assert standings == {"away": "not ready", "full": "full", "open": "open", "other": "open", "unable": "unable"}
    assert [each.score is None for each in card.candidates] == [False, False, True, True, True]


def test_a_worker_that_is_lost_is_as_fast_as_it_was() -> None:
    dispatcher = fleet(StrawWorker("lost", speed=3.0), StrawWorker("open"), StrawWorker("other"))
    ask(dispatcher, "before")
    dispatcher.registry.workers[0].state = WorkerState.LOST  # type: ignore[attr-defined]
    ask(dispatcher)

    (card,) = told(dispatcher)
    assert {each.id: (each.standing, each.speed) for each in card.candidates}["lost"] == ("not ready", 3.0)


def test_each_move_of_an_answer_is_told_with_what_made_it_move() -> None:
    workers = [StrawWorker(name) for name in "abc"]
    dispatcher = fleet(*workers)
    sink = ask(dispatcher)
    (first,) = (worker for worker in workers if worker.queue_length)
    first.end_oldest(EngineError("It is gone.", code="worker_lost"))
    (second,) = (worker for worker in workers if worker.queue_length)

    begun, moved = told(dispatcher)
    assert (begun.chosen, begun.move) == (first.id, "")
    assert (moved.chosen, moved.move) == (second.id, "worker_lost")
    assert {each.id: each.standing for each in moved.candidates}[first.id] == "tried"
    assert sink.ends == []


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_of_ours_has_scores_that_its_choice_follows(name: str) -> None:
    workers = [StrawWorker(f"worker {number}", speed=1.0 + number % 3) for number in range(9)]
    dispatcher = fleet(*workers, policy=POLICIES[name])
    for number in range(40):
        ask(dispatcher, f"r{number}", prompt="x" * 600 + str(number), session=f"s{number % 4}", max_tokens=number)
        (card,) = told(dispatcher, f"r{number}")
        assert card.scores
        assert card.policy == name
        scores = [each.score for each in card.candidates if each.within_bounds]
        assert None not in scores
        chosen, others = scores[0], scores[1:]
        if name in ("shortest_queue", "least_work", "round_robin", "session"):
            assert chosen == min(scores), "the chosen one is told first"  # type: ignore[type-var]
        elif name == "prefix":
            assert chosen == max(scores)  # type: ignore[type-var]
        assert others


def test_the_policy_of_a_plugin_is_told_without_scores() -> None:
    def mine(candidates: object, draw: object) -> int:
        return 1

    dispatcher = fleet(StrawWorker("a"), StrawWorker("b"), policy=mine)
    ask(dispatcher)
    (card,) = told(dispatcher)
    assert (card.policy, card.scores, card.chosen) == ("mine", "", "b")
    assert {each.score for each in card.candidates} == {None}


def test_with_one_worker_there_was_nothing_to_choose() -> None:
    dispatcher = fleet(StrawWorker("only"))
    ask(dispatcher)
    (card,) = told(dispatcher)
    assert (card.chosen, card.policy, card.candidates) == ("only", "", ())


def test_of_thousands_the_best_are_told_and_the_chosen_one() -> None:
    workers = [StrawWorker(f"worker {number}") for number in range(2000)]
    dispatcher = fleet(*workers, policy=POLICIES["power_of_two"])
    for number, worker in enumerate(workers):
        worker.put(queue_length=number)
    ask(dispatcher)
    (card,) = told(dispatcher)
    assert card.candidates[0].id == card.chosen
    assert len(card.candidates) == MOST_SHOWN
    assert card.others == 2000 - MOST_SHOWN
    assert [each.score for each in card.candidates[1:4]] == [0, 1, 2]


def test_a_request_is_found_by_the_id_that_its_client_knows() -> None:
    dispatcher = fleet(StrawWorker("a"), StrawWorker("b"))
    for request_id in ("chatcmpl-abc", "chatcmpl-abc-1", "cmpl-mine-0123456789abcdef", "chatcmpl-abcd", "x-abc.5"):
        ask(dispatcher, request_id)
    assert len(told(dispatcher, "abc")) == 3
    assert len(told(dispatcher, "mine")) == 1
    assert len(told(dispatcher, "chatcmpl-abc")) == 2
    assert told(dispatcher, "ab") == told(dispatcher, "") == []


def test_the_oldest_decisions_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions_, "MOST_DECISIONS", 3)
    dispatcher = fleet(StrawWorker("a"), StrawWorker("b"))
    for number in range(5):
        ask(dispatcher, f"r{number}")
    assert [len(told(dispatcher, f"r{number}")) for number in range(5)] == [0, 0, 1, 1, 1]
