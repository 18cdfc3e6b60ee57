"""Resuming: an answer that another engine began goes on as if nothing had happened."""

from __future__ import annotations

import pytest

from fastchat_serve.engine import Capability, GenerateRequest
from fastchat_serve.testing.answers import Answer
from fastchat_serve.testing.marks import in_both_forms, needs
from fastchat_serve.testing.subject import PROMPTS, Subject

pytestmark = needs(Capability.GENERATE, Capability.TOKEN_IDS)


async def resumes_everywhere(subject: Subject, request: GenerateRequest, form: str = "generator") -> None:
    """Resume at the end of every chunk, and compare what comes with what came then."""
    whole = await subject.answer(request)
    sent, ids = "", 0
    for chunk in whole.chunks[:-1]:
        sent, ids = sent + chunk.text, ids + len(chunk.token_ids)
        if ids:
            resumed = await subject.answer(subject.again(request, resume_token_ids=whole.token_ids[:ids]), form)
            expect_rest(subject, resumed, whole, sent, ids)


def expect_rest(subject: Subject, resumed: Answer, whole: Answer, sent: str, ids: int) -> None:
    after = f"after {ids} tokens"
    subject.expect_equal(resumed.token_ids, whole.token_ids[ids:], f"the ids {after}")
    subject.expect_equal(resumed.text, whole.text[len(sent) :], f"the text {after}")
    subject.expect_equal(resumed.usage.completion_tokens, whole.usage.completion_tokens, f"the usage {after}")
    subject.expect_equal(resumed.finish_reason, whole.finish_reason, f"the finish reason {after}")
    subject.expect_equal(resumed.stop_match, whole.stop_match, f"the stop match {after}")
    assert resumed.usage.prompt_tokens == whole.usage.prompt_tokens, f"the prompt counts otherwise {after}"


@needs(Capability.RESUME_GREEDY)
@in_both_forms
async def test_greedy_at_every_cut(subject: Subject, form: str) -> None:
    """At temperature 0, `resume_token_ids` at every cut gives exactly the rest, and the usage of the whole."""
    for prompt in PROMPTS:
        await resumes_everywhere(subject, subject.request(prompt, max_tokens=16), form)


@needs(Capability.RESUME_SAMPLED)
@in_both_forms
async def test_sampled_at_every_cut(subject: Subject, form: str) -> None:
    """And at temperature 1: the draw at a position depends on seed and position alone."""
    for seed, prompt in enumerate(PROMPTS):
        await resumes_everywhere(subject, subject.request(prompt, max_tokens=16, temperature=1.0, seed=seed), form)


@needs(Capability.RESUME_GREEDY)
async def test_within_a_stop_string(subject: Subject) -> None:
    """What the first run held back, because it may become a stop string, comes from the second or stays out."""
    whole = await subject.baseline(characters=12)
    middle = len(whole.text) // 2
    for stop in (whole.text[middle : middle + 6], whole.text[middle : middle + 6] + "\x07"):
        await resumes_everywhere(subject, subject.again(whole.request, stop=(stop,)))


@needs(Capability.RESUME_GREEDY)
async def test_after_the_last_token(subject: Subject) -> None:
    """An answer of which all tokens were delivered only ends: no text again, and the usage of the whole."""
    whole = await subject.baseline()
    if whole.finish_reason != "length":
        pytest.skip("the answer was not cut off")
    resumed = await subject.answer(subject.again(whole.request, resume_token_ids=whole.token_ids))
    assert resumed.token_ids == ()
    assert resumed.text == ""
    assert resumed.finish_reason == "length"
    assert resumed.usage.completion_tokens == whole.usage.completion_tokens


@needs(Capability.RESUME_GREEDY, Capability.LOGPROBS)
async def test_logprobs_go_on(subject: Subject) -> None:
    """A resumed answer has log-probabilities of its new tokens, and of no others."""
    whole = await subject.answer(subject.request(logprobs=1))
    half = len(whole.token_ids) // 2
    resumed = await subject.answer(subject.again(whole.request, resume_token_ids=whole.token_ids[:half]))
    assert [token.token_id for token in resumed.logprobs] == list(resumed.token_ids)
    for before, after in zip(whole.logprobs[half:], resumed.logprobs, strict=False):
        assert after.logprob == pytest.approx(before.logprob, abs=1e-2)
