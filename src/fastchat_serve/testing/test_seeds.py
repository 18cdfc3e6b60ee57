"""Seeds: sampled answers that can be had again."""

from __future__ import annotations

import pytest

from fastchat_serve.engine import Capability
from fastchat_serve.testing.marks import in_both_forms, needs
from fastchat_serve.testing.subject import PROMPTS, Subject

pytestmark = needs(Capability.GENERATE, Capability.SEED)

SEEDS = (1, 2, 2**63)
CERTAIN = -1e-3
"""Nothing else is ever drawn than a token that is as likely as this."""


@in_both_forms
async def test_equal_seeds_have_equal_answers(subject: Subject, form: str) -> None:
    """The same request with the same seed has the same answer at temperature 1."""
    for seed in SEEDS:
        request = subject.request(temperature=1.0, seed=seed)
        first = await subject.answer(request)
        second = await subject.answer(subject.again(request), form)
        subject.expect_same(second, first, f"the second answer with seed {seed}")


async def test_other_seeds_have_other_answers(subject: Subject) -> None:
    """Among answers with different seeds some differ, unless the model is certain of every token."""
    texts = set()
    for seed in range(8):
        answer = await subject.answer(subject.request(PROMPTS[seed % 3], temperature=1.0, seed=seed))
        texts.add((seed % 3, answer.text))
    if len(texts) > len(PROMPTS):
        subject.note(f"{len(texts)} answers with 8 seeds")
        return
    if subject.can(Capability.LOGPROBS):
        answer = await subject.answer(subject.request(logprobs=0))
        if all((token.logprob or 0.0) > CERTAIN for token in answer.logprobs):
            pytest.skip("the model is certain of every token")
    raise AssertionError("all answers are the same")


async def test_batch_mates_do_not_matter(subject: Subject) -> None:
    """A seeded answer is the same alone and among others."""
    request = subject.request(temperature=1.0, seed=11)
    alone = await subject.answer(request)
    others = [subject.request(PROMPTS[n % 3], temperature=1.0, seed=n) for n in range(subject.settings.concurrency - 1)]
    among, *_ = await subject.together([subject.again(request), *others])
    subject.expect_same(among.whole(), alone, "the answer among others")
