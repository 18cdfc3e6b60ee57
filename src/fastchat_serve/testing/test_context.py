"""The context: what does not fit is refused before anything is generated."""

from __future__ import annotations

import pytest

from fastchat_serve.engine import Capability
from fastchat_serve.errors import ContextOverflow, InvalidRequest
from fastchat_serve.testing.marks import in_both_forms, needs
from fastchat_serve.testing.subject import PROMPTS, Subject

__all__ = ["too_long"]

pytestmark = needs(Capability.GENERATE)

LARGEST = 300_000
"""Tokens of context beyond which a prompt that fills it is not tried: tokenizing it takes too long."""


def too_long(subject: Subject) -> str:
    """Text of more tokens than the context holds."""
    if subject.info.context_length > LARGEST:
        pytest.skip(f"a context of {subject.info.context_length} tokens is not filled here")
    return "one more " * (subject.info.context_length + 16)


def expected(subject: Subject) -> type[InvalidRequest]:
    """Who has the tokenizer knows the counts; an engine behind an API may only learn that it was refused."""
    return ContextOverflow if subject.can(Capability.TOKENIZE) else InvalidRequest


def assert_refused(subject: Subject, error: Exception) -> None:
    assert isinstance(error, expected(subject)), repr(error)
    if isinstance(error, ContextOverflow):
        assert str(subject.info.context_length) in str(error), "the limit is not in the message"
        assert error.code == "context_length_exceeded"


@in_both_forms
async def test_a_prompt_too_long_is_refused(subject: Subject, form: str) -> None:
    """A prompt over the context is a `ContextOverflow`, before the first chunk."""
    assert_refused(subject, await subject.refusal(subject.request(too_long(subject)), form))
    await subject.idle()


@in_both_forms
async def test_an_answer_too_long_is_refused(subject: Subject, form: str) -> None:
    """So is a `max_tokens` that the prompt leaves no room for."""
    request = subject.request(max_tokens=subject.info.context_length)
    assert_refused(subject, await subject.refusal(request, form))
    await subject.idle()


@needs(Capability.TOKENIZE)
async def test_the_last_token_fits(subject: Subject) -> None:
    """Prompt and answer may fill the context to its last token, and no further."""
    request = subject.request(PROMPTS[2])
    used = (await subject.answer(request)).usage.prompt_tokens
    room = subject.info.context_length - used
    error = await subject.refusal(subject.again(request, max_tokens=room + 1))
    assert isinstance(error, ContextOverflow)
    sink = subject.begin(subject.again(request, max_tokens=room))
    await subject.until(sink.has(1))
    sink.abort()
    await subject.until(sink.ended())
    assert sink.answer.error is None
    assert sink.answer.chunks, "it was refused"


async def test_the_engine_goes_on(subject: Subject) -> None:
    """After a refusal the next request is answered as ever."""
    await subject.refusal(subject.request(max_tokens=subject.info.context_length))
    subject.expect_same(await subject.answer(subject.request()), await subject.greedy(0), "the next answer")
