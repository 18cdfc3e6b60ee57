"""Sampling: every parameter that is declared is honoured."""

from __future__ import annotations

import pytest

from fastchat_serve.engine import Capability
from fastchat_serve.testing.answers import Answer
from fastchat_serve.testing.marks import in_both_forms, needs
from fastchat_serve.testing.subject import PROMPTS, Subject

pytestmark = needs(Capability.GENERATE)

BAN, FORCE = -100.0, 100.0
PENALTY = 2.0
CLOSE = 1e-2
"""A lead that rounding may undo."""
CONTESTED = 0.75
"""A lead that a repetition penalty of 2 undoes, of all logits but those next to 0."""


async def equals_greedy(subject: Subject, **sampling: float) -> None:
    for index, prompt in enumerate(PROMPTS):
        answer = await subject.answer(subject.request(prompt, temperature=1.0, seed=index, **sampling))
        subject.expect_same(answer, await subject.greedy(index), f"the answer with {sampling}")


async def test_a_tiny_top_p_is_greedy(subject: Subject) -> None:
    """A `top_p` that only the most likely token is within gives the greedy answer."""
    await equals_greedy(subject, top_p=1e-6)


@needs(Capability.TOP_K)
async def test_top_k_of_one_is_greedy(subject: Subject) -> None:
    """`top_k=1` gives the greedy answer."""
    await equals_greedy(subject, top_k=1)


@needs(Capability.MIN_P)
async def test_min_p_of_one_is_greedy(subject: Subject) -> None:
    """`min_p=1` gives the greedy answer."""
    await equals_greedy(subject, min_p=1.0)


async def test_greedy_needs_no_filter(subject: Subject) -> None:
    """At temperature 0, seed and `top_p` change nothing."""
    answer = await subject.answer(subject.request(seed=99, top_p=0.9))
    subject.expect_same(answer, await subject.greedy(0), "the greedy answer with a seed")


@needs(Capability.LOGIT_BIAS, Capability.TOKEN_IDS)
@in_both_forms
async def test_logit_bias_bans(subject: Subject, form: str) -> None:
    """A token with a bias of -100 is not drawn."""
    whole = await subject.baseline()
    banned = whole.token_ids[0]
    answer = await subject.answer(subject.again(whole.request, logit_bias={banned: BAN}), form)
    assert banned not in answer.token_ids


@needs(Capability.LOGIT_BIAS, Capability.TOKEN_IDS)
@in_both_forms
async def test_logit_bias_forces(subject: Subject, form: str) -> None:
    """A token with a bias of 100 is drawn."""
    whole = await subject.baseline()
    forced = next((other for other in whole.token_ids if other != whole.token_ids[0]), None)
    if forced is None:
        pytest.skip("the answer is one token, again and again")
    answer = await subject.answer(subject.again(whole.request, logit_bias={forced: FORCE}, max_tokens=3), form)
    assert answer.token_ids[0] == forced


@needs(Capability.PENALTIES)
@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
async def test_penalties_are_taken(subject: Subject, penalty: str) -> None:
    """Penalties from -2 to 2 are accepted, also when sampling."""
    for amount in (-PENALTY, PENALTY):
        for temperature in (0.0, 1.0):
            await subject.answer(subject.request(temperature=temperature, **{penalty: amount}))


@needs(Capability.PENALTIES, Capability.LOGPROBS, Capability.TOKEN_IDS)
@pytest.mark.parametrize(("presence", "frequency"), [(PENALTY, 0.0), (0.0, PENALTY)], ids=["presence", "frequency"])
async def test_penalties_turn_to_other_tokens(subject: Subject, presence: float, frequency: float) -> None:
    """Where a token of the answer leads by less than its penalty, the next best is drawn instead."""
    for prompt in PROMPTS:
        long = {"max_tokens": 4 * subject.settings.tokens, "ignore_eos": subject.can(Capability.IGNORE_EOS)}
        plain = await subject.answer(subject.request(prompt, logprobs=5, **long))
        position = first_turn(plain, presence, frequency)
        if position is not None:
            penalised = await subject.answer(
                subject.again(plain.request, presence_penalty=presence, frequency_penalty=frequency)
            )
            assert penalised.token_ids[: position + 1] != plain.token_ids[: position + 1]
            subject.note(f"token {position}")
            return
    pytest.skip("the model is too certain of its repetitions")


def first_turn(answer: Answer, presence: float, frequency: float) -> int | None:
    """The first position at which penalties must have changed a greedy answer."""
    for position, token in enumerate(answer.logprobs):
        counts = {other: answer.token_ids[:position].count(other) for other in answer.token_ids[:position]}
        rated = {
            other.token_id: (other.logprob or 0.0) - _penalty(counts.get(other.token_id, 0), presence, frequency)
            for other in (token, *token.top)
        }
        if max(rated.values()) > rated[token.token_id] + CLOSE:
            return position
    return None


def _penalty(count: int, presence: float, frequency: float) -> float:
    return presence * (count > 0) + frequency * count


@needs(Capability.REPETITION_PENALTY, Capability.LOGPROBS, Capability.TOKEN_IDS)
async def test_a_repetition_penalty_turns_to_other_tokens(subject: Subject) -> None:
    """Where the model repeats a token although another is nearly as likely, a penalty of 2 changes the answer."""
    contested = 0
    for prompt in PROMPTS:
        long = {"max_tokens": 4 * subject.settings.tokens, "ignore_eos": subject.can(Capability.IGNORE_EOS)}
        plain = await subject.answer(subject.request(prompt, logprobs=5, **long))
        if not repeats_a_contested_token(plain):
            continue
        contested += 1
        penalised = await subject.answer(subject.again(plain.request, repetition_penalty=PENALTY))
        if penalised.token_ids != plain.token_ids:
            return
    if not contested:
        pytest.skip("the model is too certain of its repetitions")
    pytest.fail(f"a repetition penalty of {PENALTY:g} changes none of {contested} answers that repeat tokens")


def repeats_a_contested_token(answer: Answer) -> bool:
    """Some token was drawn again, and one that was never drawn before was close behind it."""
    for position, token in enumerate(answer.logprobs):
        before = answer.token_ids[:position]
        if token.token_id in before and any(
            other.token_id not in before and (token.logprob or 0.0) - (other.logprob or 0.0) < CONTESTED
            for other in token.top
            if other.token_id != token.token_id
        ):
            return True
    return False


@needs(Capability.REPETITION_PENALTY)
async def test_repetition_penalty_is_taken(subject: Subject) -> None:
    """Repetition penalties below and above 1 are accepted, also when sampling."""
    for amount in (0.8, 1.3):
        for temperature in (0.0, 1.0):
            await subject.answer(subject.request(temperature=temperature, repetition_penalty=amount))
