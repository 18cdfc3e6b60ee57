"""A run: the ledger balances whatever fails, figures are what arithmetic says, and one seed is one run."""

from __future__ import annotations

import math
from collections import Counter
from random import Random
from typing import Any

import pytest

from fastchat_serve.controller.policies import POLICIES
from fastchat_serve.errors import ConfigError
from fastchat_serve.simulation.outcome import Outcome, quantile
from fastchat_serve.simulation.plan import Fleet, Goal, Plan, Synthetic
from fastchat_serve.simulation.run import Broken, Simulation
from fastchat_serve.simulation.synthetic import make_up
from fastchat_serve.simulation.trace import Arrival, blocks_of


def plan_of(*fleets: Fleet, **more: Any) -> Plan:
    return Plan(fleet=fleets or (a_fleet(),), **more)


def a_fleet(**more: Any) -> Fleet:
    settings = {"prefill_tokens_per_s": 1000.0, "decode_tokens_per_s": 10.0, "batch_tokens_per_s": 100.0}
    return Fleet(names=("m",), **(settings | more))


def outcome_of(plan: Plan, arrivals: list[Arrival], policy: str = "shortest_queue") -> Outcome:
    return Simulation(plan, policy, POLICIES[policy], iter(arrivals)).run()


def test_one_request_takes_what_reading_and_writing_take() -> None:
    outcome = outcome_of(plan_of(), [Arrival(1.0, "m", 500, 21)])
    assert (outcome.requests, outcome.done, outcome.output_tokens) == (1, 1, 21)
    assert list(outcome.queueing_s) == [0.0]
    assert list(outcome.first_token_s) == [pytest.approx(0.5)]
    assert outcome.seconds == pytest.approx(1.0 + 0.5 + 2.0)


def test_prompts_are_read_one_after_the_other() -> None:
    outcome = outcome_of(plan_of(), [Arrival(0.0, "m", 500, 1)] * 3)
    assert list(outcome.first_token_s) == [pytest.approx(0.5), pytest.approx(1.0), pytest.approx(1.5)]


def test_with_all_slots_taken_a_request_waits_and_beyond_the_queue_it_is_refused() -> None:
    outcome = outcome_of(plan_of(a_fleet(concurrency=1, queue=1)), [Arrival(0.0, "m", 100, 11)] * 3)
    assert (outcome.done, outcome.refused, outcome.longest_queue) == (2, 1, 2)
    assert list(outcome.queueing_s) == [0.0, pytest.approx(1.1)]


def test_who_waits_too_long_is_told_so() -> None:
    outcome = outcome_of(plan_of(a_fleet(concurrency=1, queue_s=1.0)), [Arrival(0.0, "m", 100, 101)] * 2)
    assert outcome.done == 1
    assert outcome.failed == {"queue_timeout": 1}


def test_what_was_read_before_is_not_read_again_where_it_was_read() -> None:
    arrivals = [Arrival(float(at), "m", 1024, 1, "", blocks_of("system", 1024)) for at in (0, 5)]
    outcome = outcome_of(plan_of(), arrivals)
    assert list(outcome.first_token_s) == [0.0, pytest.approx(1.024)]
    assert outcome.cached == 0.5
    two = plan_of(a_fleet(count=2), policies=("prefix",))
    assert outcome_of(two, arrivals, "prefix").cached == 0.5
    assert outcome_of(two, arrivals, "round_robin").cached == 0.0


def test_answers_of_a_lost_worker_go_on_elsewhere_and_no_token_is_lost_or_doubled() -> None:
    fleet = a_fleet(count=2, kill_at_s=(3.0,), repair_s=100.0)
    arrivals = [Arrival(0.0, "m", 100, 60), Arrival(0.0, "m", 100, 60), Arrival(2.95, "m", 900, 9)]
    outcome = outcome_of(plan_of(fleet), arrivals)
    assert (outcome.done, outcome.output_tokens, outcome.lost_workers) == (3, 129, 1)
    assert 1 <= outcome.moves.total() <= 2
    assert outcome.moves["resumed"] >= 1


def test_with_nobody_left_answers_fail_with_the_reason_and_requests_are_refused() -> None:
    fleet = a_fleet(kill_at_s=(1.0,), repair_s=5.0)
    arrivals = [Arrival(0.0, "m", 100, 60), Arrival(2.0, "m", 100, 1), Arrival(8.0, "m", 100, 1)]
    outcome = outcome_of(plan_of(fleet), arrivals)
    assert (outcome.done, outcome.refused, outcome.failed) == (1, 1, {"worker_lost": 1})


def test_goals_say_which_answers_are_good() -> None:
    arrivals = [Arrival(0.0, "m", 500, 20)] * 2
    assert outcome_of(plan_of(), arrivals).good == 2
    assert outcome_of(plan_of(goal=Goal(first_token_s=0.6)), arrivals).good == 1
    assert outcome_of(plan_of(a_fleet(batch_tokens_per_s=10.0), goal=Goal(tokens_per_s=9.0)), arrivals).good == 0


def test_requests_can_come_faster_than_the_trace_has_it() -> None:
    arrivals = [Arrival(100.0, "m", 500, 1)]
    assert outcome_of(plan_of(speedup=10.0), arrivals).seconds == pytest.approx(10.5)


def test_a_model_that_nobody_serves_is_a_mistake_of_the_trace() -> None:
    with pytest.raises(ConfigError, match="'other', which no worker"):
        outcome_of(plan_of(), [Arrival(0.0, "other", 1, 1)])


WILD = {"count": 6, "concurrency": 3, "queue": 4, "queue_s": 3.0, "mtbf_s": 20.0, "repair_s": 4.0}


def wild(seed: int) -> Plan:
    synthetic = Synthetic(
        requests=400,
        rate=30.0,
        arrivals="bursty",
        prompt_tokens=60,
        output_tokens=12,
        prefixes=3,
        sessions=20,
        models=("m",),
    )
    return plan_of(a_fleet(**WILD, speed=2.0), a_fleet(**WILD), seed=seed, synthetic=synthetic)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(6))
def test_every_request_has_one_end_whatever_fails(policy: str, seed: int) -> None:
    """G1 to G7: the ledger raises `Broken` otherwise."""
    plan = wild(seed)
    outcome = Simulation(plan, policy, POLICIES[policy], make_up(plan.synthetic, seed)).run()
    assert outcome.requests == 400 == outcome.done + outcome.refused + outcome.failed.total()
    assert outcome.lost_workers > 0
    assert outcome.moves.total() > 0


@pytest.mark.parametrize("policy", POLICIES)
def test_one_seed_is_one_run(policy: str) -> None:
    def run(seed: int) -> Outcome:
        plan = wild(seed)
        return Simulation(plan, policy, POLICIES[policy], make_up(plan.synthetic, seed)).run()

    assert run(1) == run(1) != run(2)


def test_the_ledger_notices_what_is_wrong() -> None:
    plan = wild(1)
    simulation = Simulation(plan, "lottery", POLICIES["lottery"], make_up(plan.synthetic, 1))
    worker = simulation.workers[0]
    worker.let_go = lambda answer: answer._sink.end(None)  # type: ignore[method-assign]
    with pytest.raises(Broken):
        simulation.run()


def test_f11_a_beginning_that_everybody_shares_makes_no_hot_spot() -> None:
    fleet = a_fleet(count=20, prefill_tokens_per_s=20_000.0, decode_tokens_per_s=60.0, batch_tokens_per_s=1000.0)
    synthetic = Synthetic(requests=3000, rate=60.0, prefixes=1, prefix_tokens=2048, prompt_tokens=100, models=("m",))
    plan = plan_of(fleet, synthetic=synthetic)
    outcome = Simulation(plan, "prefix", POLICIES["prefix"], make_up(synthetic, 1)).run()
    assert outcome.done == 3000
    assert outcome.cached > 0.85
    assert outcome.hot_spot < 1.5


def test_quantiles_are_by_nearest_rank() -> None:
    ordered = sorted(Random(1).random() for _ in range(1000))
    for share in (0.001, 0.5, 0.99, 0.999, 1.0):
        assert quantile(ordered, share) == ordered[math.ceil(share * 1000) - 1]
    assert quantile([], 0.5) == 0.0
    assert Counter() == Outcome(policy="p").failed
