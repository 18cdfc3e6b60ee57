"""Drawing from logits, without a model."""

from __future__ import annotations

import numpy as np
import pytest

from fastchat_backend_llamacpp.sampling import Logits, Sampler, alternatives, uniform
from fastchat_serve import SamplingParams

SIZE = 1000


def logits(*values: float) -> Logits:
    return np.array(values, np.float32)


def drawn(params: SamplingParams, values: Logits, *, positions: int = 400) -> set[int | None]:
    """Every token that is drawn at one of so many positions."""
    sampler = Sampler(params, [], [], len(values))
    return {sampler.draw(values.copy(), position) for position in range(positions)}


@pytest.mark.parametrize(
    ("seed", "position", "number"),
    [(0, 0, 0.6524484863740322), (1, 7, 0.19958521908310312), (2**63, 100, 0.6999134075492993)],
)
def test_the_numbers_are_those_of_the_hf_backend(seed: int, position: int, number: float) -> None:
    assert uniform(seed, position) == number


def test_draws_follow_the_probabilities() -> None:
    weights = np.array([0.5, 0.3, 0.0, 0.2])
    with np.errstate(divide="ignore"):
        values = np.log(weights).astype(np.float32)
    sampler = Sampler(SamplingParams(seed=4), [], [], 4)
    counts = np.bincount([sampler.draw(values.copy(), position) or 0 for position in range(20_000)], minlength=4)
    assert counts / counts.sum() == pytest.approx(weights, abs=0.02)
    assert counts[2] == 0


def test_temperature_zero_takes_the_lowest_id_of_the_likeliest() -> None:
    assert drawn(SamplingParams(temperature=0), logits(1, 3, 3, 2)) == {1}


@pytest.mark.parametrize(
    ("params", "left"),
    [
        (SamplingParams(top_k=2), {0, 1}),
        (SamplingParams(top_p=0.6), {0, 1}),
        (SamplingParams(top_p=0.39), {0}),
        (SamplingParams(min_p=0.5), {0, 1}),
        (SamplingParams(top_k=3, top_p=0.9), {0, 1, 2}),
        (SamplingParams(temperature=0.001), {0}),
        (SamplingParams(logit_bias={3: 100.0}), {3}),
        (SamplingParams(), {0, 1, 2, 3}),
    ],
)
def test_filters_leave_the_likely_tokens(params: SamplingParams, left: set[int]) -> None:
    assert drawn(params, np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))) == left


def test_ties_with_the_last_token_of_a_filter_stay() -> None:
    assert drawn(SamplingParams(top_k=2), logits(2, 1, 1, 0)) == {0, 1, 2}


def test_top_p_of_a_flat_distribution_looks_beyond_the_likely_tokens() -> None:
    values = -np.arange(SIZE, dtype=np.float32) / SIZE
    assert len(drawn(SamplingParams(top_p=0.9), values, positions=20_000)) > 800


def test_penalties_count_what_was_drawn() -> None:
    params = SamplingParams(temperature=0, presence_penalty=0.5, frequency_penalty=1.0)
    sampler = Sampler(params, [0], [1], 3)
    values = logits(2, 3, 1.8)
    assert sampler.draw(values.copy(), 1) == 0, "the prompt does not count"
    sampler.accept(0)
    assert sampler.draw(values.copy(), 2) == 2
    sampler.accept(2)
    assert sampler.draw(values.copy(), 3) == 1


def test_the_repetition_penalty_counts_the_prompt_too() -> None:
    params = SamplingParams(temperature=0, repetition_penalty=2.0)
    assert Sampler(params, [0], [], 3).draw(logits(3, 2, -1), 0) == 1
    assert Sampler(params, [0], [1], 3).draw(logits(-1, -1.2, -1.8), 1) == 2


def test_forbidden_tokens_and_masks_hold() -> None:
    sampler = Sampler(SamplingParams(temperature=0), [], [], 4)
    assert sampler.draw(logits(4, 3, 2, 1), 0, forbidden={0}) == 1
    assert sampler.draw(logits(4, 3, 2, 1), 0, mask=np.array([False, False, True, True])) == 2


@pytest.mark.parametrize("values", [logits(1, np.nan), logits(1, np.inf), logits(-np.inf, -np.inf)])
def test_logits_that_are_no_numbers_draw_nothing(values: Logits) -> None:
    assert drawn(SamplingParams(), values, positions=3) == {None}
    assert drawn(SamplingParams(temperature=0), values, positions=3) == {None}


@pytest.mark.parametrize("value", [3e38, -3e38])
def test_huge_numbers_overflow_nothing(value: float) -> None:
    with np.errstate(over="ignore"):
        assert drawn(SamplingParams(temperature=1e-9), logits(value, 0), positions=3) == {0 if value > 0 else 1}


def test_alternatives_come_best_first_and_the_lowest_id_of_equals() -> None:
    found = alternatives(logits(0, 2, 1, 2), 0, 3)
    assert found.ids == [1, 3, 2]
    assert found.logprobs == sorted(found.logprobs, reverse=True)
    assert found.chosen == pytest.approx(-np.log(1 + 2 * np.exp(2) + np.exp(1)), abs=1e-6)
    assert alternatives(logits(0, 1), 1, 20).ids == [1, 0]
    assert alternatives(logits(0, 1), 1, 0).ids == []
