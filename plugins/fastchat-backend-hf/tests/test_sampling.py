"""The vectorised sampler against a plain one that follows the contract word by word."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastchat_backend_hf import penalties
from fastchat_backend_hf.sampling import Sampler, uniforms
from fastchat_backend_hf.sequences import TokenSequence
from fastchat_serve import GenerateRequest, SamplingParams, TokenPrompt

VOCABULARY = 24
CPU = torch.device("cpu")


@dataclass
class Row:
    """The part of a sequence that a sampler reads."""

    request: GenerateRequest
    prompt: list[int] = field(default_factory=lambda: [1, 2, 3])
    drawn: list[int] = field(default_factory=list)
    stop_ids: frozenset[int] = frozenset({0})
    mask: object = None

    @property
    def forbidden(self) -> frozenset[int]:
        return self.stop_ids if len(self.drawn) < self.request.sampling.min_tokens else frozenset()


def row(*, answer: tuple[int, ...] = (), logprobs: int | None = None, **sampling: Any) -> Row:
    params = SamplingParams(**sampling)
    return Row(
        GenerateRequest(id="r", prompt=TokenPrompt((1,)), sampling=params, logprobs=logprobs), drawn=list(answer)
    )


def sampler(*rows: Row) -> Sampler:
    return Sampler(cast("list[TokenSequence]", list(rows)), CPU)


def draw(rows: list[Row], logits: torch.Tensor) -> list[int | None]:
    return [one.token for one in sampler(*rows).draw(logits.clone())]


def plain_draw(one: Row, logits: list[float]) -> set[int]:
    """The token to draw, in Python floats; a set of several where rounding decides."""
    params = one.request.sampling
    scores = list(logits)
    for token, bias in (params.logit_bias or {}).items():
        scores[token] += bias
    seen = Counter(one.drawn)
    for token in range(VOCABULARY):
        if token in seen or token in one.prompt:
            scores[token] *= params.repetition_penalty if scores[token] < 0 else 1 / params.repetition_penalty
        scores[token] -= params.frequency_penalty * seen[token] + params.presence_penalty * (token in seen)
    if len(one.drawn) < params.min_tokens:
        for token in one.stop_ids:
            scores[token] = -math.inf
    if params.temperature == 0:
        return {scores.index(max(scores))}
    best = max(scores)
    weights = [math.exp((score - best) / params.temperature) for score in scores]
    ranked = sorted(weights, reverse=True)
    if params.top_k:
        weights = [w if w >= ranked[min(params.top_k, VOCABULARY) - 1] else 0 for w in weights]
    if params.top_p < 1:
        ranked, mass = sorted(weights, reverse=True)[: params.top_k or None], 0.0
        total = sum(ranked)
        for weight in ranked:
            least = weight
            mass += weight
            if mass >= params.top_p * total:
                break
        weights = [w if w >= least else 0 for w in weights]
    weights = [w if w >= params.min_p else 0 for w in weights]
    chance = uniforms(np.array([params.seed], np.uint64), np.array([len(one.drawn)], np.uint64))[0]
    aim, mass = chance * sum(weights), 0.0
    found = set()
    for token, weight in enumerate(weights):
        if weight and mass - 1e-5 <= aim < mass + weight + 1e-5:
            found.add(token)
        mass += weight
    return found


samplings = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 3, 100]),
        "top_p": st.sampled_from([1.0, 0.9, 0.5, 0.05]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "presence_penalty": st.sampled_from([0.0, 0.7]),
        "frequency_penalty": st.sampled_from([0.0, -0.5]),
        "logit_bias": st.sampled_from([None, {4: 2.5, 7: -100.0}]),
        "min_tokens": st.sampled_from([0, 2]),
        "seed": st.integers(0, 2**64 - 1),
        "answer": st.sampled_from([(), (4, 4, 9), (11,)]),
    }
)


@settings(max_examples=150)
@given(st.lists(samplings, min_size=1, max_size=6), st.integers(0, 2**31))
def test_any_mix_of_rows_draws_what_each_would_draw_by_the_book(mix: list[dict[str, Any]], noise: int) -> None:
    rows = [row(**settings) for settings in mix]
    # distinct, well apart: no ties, and no rounding at the edge of a filter
    generator = torch.Generator().manual_seed(noise)
    logits = torch.stack([torch.randperm(VOCABULARY, generator=generator) for _ in rows]).float() * 0.37 - 4
    for one, scores, token in zip(rows, logits.tolist(), draw(rows, logits), strict=True):
        assert token in plain_draw(one, scores)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).repeat(20_000, 1)
    rows = [row(seed=seed) for seed in range(20_000)]
    found = Counter(draw(rows, logits))
    for token, probability in enumerate(logits[0].softmax(-1).tolist()):
        sigma = math.sqrt(probability * (1 - probability) / 20_000)
        assert found[token] / 20_000 == pytest.approx(probability, abs=5 * sigma)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_a_chance_is_a_function_of_seed_and_position(seed: int, position: int) -> None:
    alone = uniforms(np.array([seed], np.uint64), np.array([position], np.uint64))
    among = uniforms(np.array([1, seed, 2], np.uint64), np.array([9, position, 9], np.uint64))
    assert alone[0] == among[1]
    assert 0 <= alone[0] < 1


def test_chances_of_neighbouring_seeds_and_positions_are_unrelated() -> None:
    seeds, positions = np.meshgrid(np.arange(200, dtype=np.uint64), np.arange(200, dtype=np.uint64))
    chances = uniforms(seeds.ravel(), positions.ravel()).reshape(200, 200)
    assert abs(chances.mean() - 0.5) < 0.01
    neighbours = [
        (chances[1:], chances[:-1]),
        (chances[:, 1:], chances[:, :-1]),
        (chances[1:, 1:], chances[:-1, :-1]),
        (chances[1:, :-1], chances[:-1, 1:]),
    ]
    for one, other in neighbours:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.03


def test_the_lowest_id_wins_a_greedy_tie() -> None:
    assert draw([row(temperature=0)], torch.tensor([[1.0, 3.0, 3.0, 3.0]])) == [1]


@pytest.mark.parametrize("size", [600, 5000])
def test_top_p_over_a_flat_distribution_looks_beyond_the_likely_tokens(size: int) -> None:
    logits = torch.linspace(0, -0.001, size).repeat(64, 1)
    rows = [row(top_p=0.99, seed=seed) for seed in range(64)]
    tokens = [token for token in draw(rows, logits) if token is not None]
    assert max(tokens) > 0.9 * size
    assert max(tokens) < 0.99 * size + 1


def test_a_top_p_of_nearly_nothing_leaves_the_likeliest_token() -> None:
    assert draw([row(top_p=1e-9, seed=3)], torch.tensor([[1.0, 5.0, 4.9]])) == [1]


def test_a_tiny_temperature_is_greedy_and_finite() -> None:
    assert draw([row(temperature=1e-30, seed=3)], torch.tensor([[1.0, 5.0, -1e30]])) == [1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("penalty", [5e-324, 1e-46, 1e-38])
def test_a_repetition_penalty_of_nearly_nothing_repeats_and_stays_finite(penalty: float, temperature: float) -> None:
    """G14: the quotient must not become infinite."""
    one = row(answer=(2,), repetition_penalty=penalty, temperature=temperature)
    assert draw([one], torch.tensor([[9.0, -5.0, 4.0, -5.0]])) == [2]


def test_a_token_without_weight_is_never_drawn() -> None:
    logits = torch.full((1000, 8), -torch.inf)
    logits[:, 3] = 0
    assert set(draw([row(seed=seed) for seed in range(1000)], logits)) == {3}


def test_rows_without_numbers_draw_nothing_and_others_do() -> None:
    logits = torch.tensor([[torch.nan, 1.0], [0.0, 1.0], [torch.inf, 0.0]])
    assert draw([row(temperature=0), row(temperature=0), row(seed=1)], logits) == [None, 1, None]


def test_penalties_count_what_is_drawn_between_steps() -> None:
    one = row(temperature=0, frequency_penalty=1.0)
    steps = sampler(one)
    drawn = []
    for _ in range(4):
        (result,) = steps.draw(torch.tensor([[0.0, 2.5, 2.0]]))
        assert result.token is not None
        one.drawn.append(result.token)
        drawn.append(result.token)
    assert drawn == [1, 2, 1, 2]


def test_penalties_of_those_who_stay_outlast_a_change_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is counted twice for somebody else's coming and going, and nobody inherits a neighbour's counts."""
    counted: list[Any] = []
    occurrences = penalties._occurrences

    def noted(tokens: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        counted.append(tokens)
        return occurrences(tokens, like)

    monkeypatch.setattr(penalties, "_occurrences", noted)
    logits = torch.tensor([0.0, 2.5, 2.0])
    penalty: dict[str, Any] = {"temperature": 0, "frequency_penalty": 1.0, "repetition_penalty": 1.1}
    stays, leaves, plain, comes = row(**penalty), row(**penalty), row(temperature=0), row(**penalty)
    for one in (stays, leaves, comes):
        one.prompt = [0]
    last: Sampler | None = None
    changes: list[list[Row]] = [[leaves, stays], [leaves, stays], [stays, plain], [comes, plain, stays], [stays]]
    for rows in changes:
        last = Sampler(cast("list[TokenSequence]", list(rows)), CPU, last)
        for one, result in zip(rows, last.draw(logits.repeat(len(rows), 1)), strict=True):
            assert result.token is not None
            one.drawn.append(result.token)
    alone, expected = sampler(fresh := row(**penalty)), []
    fresh.prompt = [0]
    for _ in range(5):
        (result,) = alone.draw(logits[None].clone())
        assert result.token is not None
        fresh.drawn.append(result.token)
        expected.append(result.token)
    assert stays.drawn == expected
    assert len(counted) == 2 * 4, "answer and prompt of each of four"


def test_log_probabilities_ignore_temperature_bias_and_filters() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    one = row(temperature=0.1, top_k=1, logit_bias={0: 50.0}, logprobs=2)
    (result,) = sampler(one).draw(logits.clone())
    expected = logits[0].log_softmax(-1)
    assert result.token == 0
    assert result.alternatives is not None
    assert result.alternatives.chosen == pytest.approx(float(expected[0]))
    assert result.alternatives.ids == [2, 1]
