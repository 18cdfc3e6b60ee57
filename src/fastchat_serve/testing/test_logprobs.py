"""Log-probabilities: one per token, and a distribution."""

from __future__ import annotations

import math

import pytest

from fastchat_serve.engine import Capability, TokenLogprob
from fastchat_serve.testing.marks import in_both_forms, needs
from fastchat_serve.testing.subject import PROMPTS, Subject

pytestmark = needs(Capability.GENERATE, Capability.LOGPROBS)

ALTERNATIVES = 4
ROUNDING = 1e-3
"""Of natural logarithms in float16 and wider."""


def value(token: TokenLogprob) -> float:
    assert type(token.logprob) is float, f"{token.text!r} has no log-probability"
    return token.logprob


@in_both_forms
async def test_one_per_token(subject: Subject, form: str) -> None:
    """Every drawn token has one entry, in the chunk that has its id; with ids, they are the same."""
    for prompt in PROMPTS:
        answer = await subject.answer(subject.request(prompt, logprobs=ALTERNATIVES), form)
        assert len(answer.logprobs) == answer.usage.completion_tokens
        if subject.can(Capability.TOKEN_IDS):
            for chunk in answer.chunks:
                assert tuple(token.token_id for token in chunk.logprobs or ()) == chunk.token_ids


async def test_at_most_zero(subject: Subject) -> None:
    """Probabilities are at most 1, so their logarithms are at most 0; and no number is missing."""
    answer = await subject.answer(subject.request(logprobs=ALTERNATIVES))
    for token in answer.logprobs:
        assert value(token) <= 0
        assert all(value(other) <= 0 for other in token.top)


@pytest.mark.parametrize("alternatives", [0, 1, ALTERNATIVES])
async def test_as_many_alternatives_as_asked_for(subject: Subject, alternatives: int) -> None:
    """There are no more alternatives than were asked for, each another token; none if it is 0, some if more."""
    answer = await subject.answer(subject.request(logprobs=alternatives))
    for token in answer.logprobs:
        assert len(token.top) <= alternatives
        assert bool(token.top) == bool(alternatives)
        assert len({(other.token_id, other.data) for other in token.top}) == len(token.top)
        assert all(other.top == () for other in token.top)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_best_first(subject: Subject, temperature: float) -> None:
    """Alternatives are sorted, their probabilities sum up to no more than 1, and none is better that is left out."""
    answer = await subject.answer(subject.request(logprobs=ALTERNATIVES, temperature=temperature, seed=5))
    for token in answer.logprobs:
        ranked = [value(other) for other in token.top]
        assert ranked == sorted(ranked, reverse=True)
        assert sum(math.exp(logprob) for logprob in ranked) <= 1 + ROUNDING
        assert value(token) <= ranked[0] + ROUNDING, "the drawn token is better than the best"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_the_drawn_token_is_rated_once(subject: Subject, temperature: float) -> None:
    """Where the drawn token is among its alternatives, both say the same."""
    answer = await subject.answer(subject.request(logprobs=ALTERNATIVES, temperature=temperature, seed=6))
    for token in answer.logprobs:
        for other in token.top:
            if (other.token_id, other.data) == (token.token_id, token.data):
                assert value(other) == pytest.approx(value(token), abs=ROUNDING)


async def test_greedy_draws_the_best(subject: Subject) -> None:
    """At temperature 0 the drawn token is as likely as the first alternative."""
    answer = await subject.answer(subject.request(logprobs=ALTERNATIVES))
    for position, token in enumerate(answer.logprobs):
        assert value(token) == pytest.approx(value(token.top[0]), abs=ROUNDING), f"token {position}"


async def test_they_do_not_change_the_answer(subject: Subject) -> None:
    """With log-probabilities the answer is the same as without."""
    for index, prompt in enumerate(PROMPTS):
        answer = await subject.answer(subject.request(prompt, logprobs=ALTERNATIVES))
        subject.expect_same(answer, await subject.greedy(index), "the answer with log-probabilities")


async def test_before_temperature(subject: Subject) -> None:
    """They are the model's, before temperature: the first token's alternatives are rated alike at 0 and at 1.5."""
    ratings = []
    for temperature in (0.0, 1.5):
        answer = await subject.answer(
            subject.request(logprobs=ALTERNATIVES, temperature=temperature, max_tokens=1, seed=3)
        )
        ratings.append([value(other) for other in answer.logprobs[0].top])
    assert ratings[0] == pytest.approx(ratings[1], abs=10 * ROUNDING)


async def test_bytes_are_the_text(subject: Subject) -> None:
    """The tokens' `data`, joined, is the text in UTF-8, white space at the start apart."""
    for prompt in PROMPTS:
        answer = await subject.answer(subject.request(prompt, logprobs=0))
        data = b"".join(token.data for token in answer.logprobs)
        text = answer.text.removesuffix("\ufffd").strip().encode()
        assert text in data, f"{text!r} is not in {data!r}"
