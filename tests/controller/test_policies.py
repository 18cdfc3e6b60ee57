"""Policies are pure: the same candidates and the same draw, the same choice; chance is fair."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastchat_serve.controller.policies import (
    POLICIES,
    least_work,
    lottery,
    power_of_two,
    prefix,
    round_robin,
    session,
    shortest_queue,
)
from fastchat_serve.controller.pools import Standing
from fastchat_serve.policy import Candidate, Candidates, Draw, Policy
from tests.controller.standings import standing

DRAWS = 6000
SPEEDS = st.just(0.0) | st.floats(1e-300, 10)
"""Those by which a queue can be divided, and none."""
CANDIDATES = st.lists(
    st.builds(Candidate, id=st.uuids().map(str), speed=SPEEDS, queue_length=st.integers(0, 99)),
    min_size=1,
    max_size=6,
    unique_by=lambda candidate: candidate.id,
).map(standing)


def workers(*speeds_and_queues: tuple[float, int]) -> Standing:
    return standing([Candidate(str(index), speed, queue) for index, (speed, queue) in enumerate(speeds_and_queues)])


def draws(policy: Policy, candidates: Candidates, seed: int = 1) -> Counter[int]:
    random = Random(seed)
    return Counter(policy(candidates, Draw(random, turn)) for turn in range(DRAWS))


def assert_follows(counts: Counter[int], weights: list[float]) -> None:
    """Pearson's chi-square against `weights`, with a bound that one in a million fair runs would miss."""
    assert sum(weights[index] == 0 and counts[index] for index in range(len(weights))) == 0
    expected = [DRAWS * weight / sum(weights) for weight in weights]
    chi_square = sum((counts[index] - value) ** 2 / value for index, value in enumerate(expected) if value)
    degrees = sum(value > 0 for value in expected) - 1
    assert chi_square <= degrees + 7 * (2 * degrees) ** 0.5 + 12


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@given(candidates=CANDIDATES, seed=st.integers(), turn=st.integers(0))
def test_the_same_input_gives_the_same_choice_and_a_valid_one(
    policy: Policy, candidates: Candidates, seed: int, turn: int
) -> None:
    before = list(candidates)
    choice = policy(candidates, Draw(Random(seed), turn))

    assert 0 <= choice < len(candidates)
    assert policy(candidates, Draw(Random(seed), turn)) == choice
    assert list(candidates) == before


def test_lottery_draws_by_speed_whatever_the_queues() -> None:
    assert_follows(draws(lottery, workers((1, 9), (2, 0), (5, 3))), [1, 2, 5])


def test_lottery_gives_nothing_to_speed_zero_unless_there_is_nobody_else() -> None:
    assert_follows(draws(lottery, workers((1, 0), (0, 0), (1, 0))), [1, 0, 1])
    assert_follows(draws(lottery, workers((0, 0), (0, 0))), [1, 1])


@given(CANDIDATES, st.integers())
def test_shortest_queue_takes_the_least_queue_for_its_speed(candidates: Candidates, seed: int) -> None:
    choice = candidates[shortest_queue(candidates, Draw(Random(seed), 0))]
    fast = [candidate for candidate in candidates if candidate.speed]
    if fast:
        assert choice.speed
        assert choice.queue_length / choice.speed == min(other.queue_length / other.speed for other in fast)


def test_shortest_queue_breaks_ties_fairly() -> None:
    assert_follows(draws(shortest_queue, workers((1, 2), (2, 4), (1, 3), (3, 6))), [1, 1, 0, 1])
    assert_follows(draws(shortest_queue, workers((0, 0), (0, 5))), [1, 1])


def test_round_robin_goes_through_all_of_them_in_turn() -> None:
    three = workers((1, 0), (1, 0), (1, 0))

    assert [round_robin(three, Draw(Random(), turn)) for turn in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_power_of_two_takes_the_better_of_two_at_random() -> None:
    """Of three, the best wins both of its pairs, the middle one its other, the worst none."""
    assert_follows(draws(power_of_two, workers((1, 9), (1, 0), (1, 5))), [0, 2, 1])
    assert_follows(draws(power_of_two, workers((1, 1), (1, 1), (1, 1), (1, 1))), [1, 1, 1, 1])
    assert power_of_two(workers((1, 7)), Draw(Random(), 0)) == 0


def test_power_of_two_balances_nearly_as_well_as_the_shortest_queue() -> None:
    def worst(policy: Policy) -> int:
        random, queues = Random(3), [0] * 20
        for turn in range(2000):
            queues[policy(workers(*((1, queue) for queue in queues)), Draw(random, turn))] += 1
        return max(queues)

    assert worst(shortest_queue) == 100
    assert worst(power_of_two) <= 105 < worst(lottery)


def test_every_policy_can_be_named_in_a_config() -> None:
    affine = {"prefix", "session"}
    assert set(POLICIES) == {"lottery", "shortest_queue", "least_work", "round_robin", "power_of_two"} | affine


def test_least_work_counts_tokens_and_not_requests() -> None:
    candidates = [Candidate("a", 1.0, 1, work=900), Candidate("b", 1.0, 5, work=100), Candidate("c", 4.0, 9, work=800)]
    assert set(draws(least_work, standing(candidates))) == {1}


# ---------------------------------------------------------------------------------------- affinity


def of_sessions(candidates: Candidates, count: int = 3000) -> list[str]:
    """Who gets each of so many sessions, one request at a time."""
    random = Random(1)
    return [candidates[session(candidates, Draw(random, 0, f"session {number}"))].id for number in range(count)]


def test_a_session_stays_with_its_worker_whatever_order_they_are_listed_in() -> None:
    three = workers((1, 0), (1, 0), (1, 0))
    assert of_sessions(three) == of_sessions(standing(three[::-1]))
    assert of_sessions(three) == of_sessions(three)


def test_sessions_are_shared_out_by_speed() -> None:
    counts = Counter(of_sessions(workers((1, 0), (2, 0), (3, 0)), DRAWS))
    assert_follows(Counter({int(worker): count for worker, count in counts.items()}), [1, 2, 3])


def test_when_a_worker_goes_only_its_sessions_move() -> None:
    three = workers((1, 0), (1, 0), (1, 0))
    before, after = of_sessions(three), of_sessions(standing(three[:2]))
    assert [now for was, now in zip(before, after, strict=True) if was != "2"] == [was for was in before if was != "2"]
    assert set(after) == {"0", "1"}


def test_a_session_leaves_a_worker_that_has_much_more_than_its_share() -> None:
    idle = workers((1, 0), (1, 0), (1, 0))
    home = session(idle, Draw(Random(1), 0, "mine"))
    busy = [Candidate(each.id, 1.0, 30 if index == home else 0) for index, each in enumerate(idle)]
    assert session(standing(busy), Draw(Random(1), 0, "mine")) != home
    slightly = [Candidate(each.id, 1.0, 11 if index == home else 10) for index, each in enumerate(idle)]
    assert session(standing(slightly), Draw(Random(1), 0, "mine")) == home


def test_without_a_session_or_a_known_beginning_the_shortest_queue_decides() -> None:
    candidates = workers((1, 3), (1, 0), (1, 2))
    assert set(draws(session, candidates)) == {1}
    assert set(draws(prefix, candidates)) == {1}


def test_a_prompt_goes_to_who_has_read_most_of_it() -> None:
    candidates = [Candidate("a", 1, 0), Candidate("b", 1, 2, known=512), Candidate("c", 1, 0, known=256)]
    assert set(draws(prefix, standing(candidates))) == {1}


def test_a_worker_that_knows_every_beginning_is_no_hot_spot() -> None:
    queues = [0, 0, 0, 0]
    for turn in range(400):
        candidates = [Candidate(str(i), 1, queue, known=0 if i else 4096) for i, queue in enumerate(queues)]
        queues[prefix(standing(candidates), Draw(Random(turn), turn))] += 1
    assert max(queues) <= 1.3 * 400 / 4


@given(CANDIDATES)
@example(standing([Candidate("w", 2.2e-309, 0)]))
def test_affinity_passes_nobody_over_who_is_the_only_one_that_can(candidates: Candidates) -> None:
    for policy in (prefix, session):
        choice = policy(candidates, Draw(Random(0), 0, "s"))
        if any(candidate.speed > 0 for candidate in candidates):
            assert candidates[choice].speed > 0
