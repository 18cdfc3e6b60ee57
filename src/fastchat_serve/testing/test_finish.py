"""Finish: why an answer ends, and where."""

from __future__ import annotations

import pytest

from fastchat_serve.engine import Capability
from fastchat_serve.testing.marks import in_both_forms, needs
from fastchat_serve.testing.subject import PROMPTS, Subject

pytestmark = needs(Capability.GENERATE)


@in_both_forms
async def test_max_tokens_is_the_length(subject: Subject, form: str) -> None:
    """An answer has at most `max_tokens` tokens; one that they cut has exactly so many, and the reason "length"."""
    for prompt in PROMPTS:
        for most in (2, 5, subject.settings.tokens):
            answer = await subject.answer(subject.request(prompt, max_tokens=most), form)
            assert answer.usage.completion_tokens <= most
            if answer.finish_reason == "length":
                assert answer.usage.completion_tokens == most
                assert answer.stop_match is None


@in_both_forms
async def test_one_token(subject: Subject, form: str) -> None:
    """`max_tokens=1` has exactly one token, however long the answer would be."""
    longest = await subject.baseline()
    assert longest.usage.completion_tokens > 1
    answer = await subject.answer(subject.again(longest.request, max_tokens=1), form)
    assert answer.usage.completion_tokens == 1
    assert answer.finish_reason == "length"


async def test_a_stop_comes_before_max_tokens(subject: Subject) -> None:
    """An answer that is shorter than `max_tokens` has the reason "stop"."""
    for prompt in PROMPTS:
        answer = await subject.answer(subject.request(prompt, max_tokens=4 * subject.settings.tokens))
        shorter = answer.usage.completion_tokens < 4 * subject.settings.tokens
        assert not shorter or answer.finish_reason == "stop"


@needs(Capability.STOP_TOKEN_IDS, Capability.TOKEN_IDS)
@in_both_forms
async def test_a_stop_token_ends_the_answer(subject: Subject, form: str) -> None:
    """A token of `stop_token_ids` ends the answer: it is counted and matched, and is no part of the text."""
    whole = await subject.baseline()
    for index in sorted({0, 1, 3, len(whole.token_ids) // 2}):
        stop_id = whole.token_ids[index]
        first = whole.token_ids.index(stop_id)
        answer = await subject.answer(subject.again(whole.request, stop_token_ids=(stop_id,)), form)
        subject.expect_equal(answer.token_ids, whole.token_ids[: first + 1], f"what token {first} ends")
        if answer.token_ids and answer.token_ids[-1] == stop_id:
            assert answer.finish_reason == "stop"
            assert answer.stop_match == stop_id
            assert answer.usage.completion_tokens == len(answer.token_ids)
        subject.expect_equal(
            answer.text.removesuffix("\ufffd"), whole.text[: len(answer.text.removesuffix("\ufffd"))], "the text before"
        )
        if first == 0:
            assert answer.text == "", "the stop token is in the text"


@needs(Capability.STOP_TOKEN_IDS, Capability.TOKEN_IDS)
async def test_no_stop_token_is_in_the_text(subject: Subject) -> None:
    """The text of an answer that a stop token ends is the text of the tokens before it."""
    whole = await subject.baseline()
    first = len(whole.token_ids) // 2
    stop_id = whole.token_ids[first]
    first = whole.token_ids.index(stop_id)
    if first == 0:
        pytest.skip("the answer repeats its first token")
    before = await subject.answer(subject.again(whole.request, max_tokens=first))
    stopped = await subject.answer(subject.again(whole.request, stop_token_ids=(stop_id,)))
    subject.expect_equal(stopped.text, before.text, "the text before the stop token")


@needs(Capability.MIN_TOKENS)
async def test_min_tokens_are_drawn(subject: Subject) -> None:
    """With `min_tokens` no stop token ends an answer earlier."""
    for prompt in PROMPTS:
        answer = await subject.answer(
            subject.request(prompt, min_tokens=subject.settings.tokens, max_tokens=subject.settings.tokens + 4)
        )
        assert answer.usage.completion_tokens >= subject.settings.tokens


@needs(Capability.MIN_TOKENS, Capability.STOP_TOKEN_IDS, Capability.TOKEN_IDS)
async def test_min_tokens_hold_for_stop_token_ids(subject: Subject) -> None:
    """And neither does one of `stop_token_ids`."""
    whole = await subject.baseline()
    least = whole.token_ids.index(whole.token_ids[3]) + 3
    answer = await subject.answer(
        subject.again(whole.request, stop_token_ids=(whole.token_ids[3],), min_tokens=least, max_tokens=least + 8)
    )
    assert answer.usage.completion_tokens >= least


@needs(Capability.IGNORE_EOS)
async def test_ignore_eos_goes_on(subject: Subject) -> None:
    """With `ignore_eos` only `max_tokens` ends an answer."""
    most = 4 * subject.settings.tokens
    for prompt in PROMPTS:
        answer = await subject.answer(subject.request(prompt, ignore_eos=True, max_tokens=most))
        assert answer.finish_reason == "length"
        assert answer.usage.completion_tokens == most
