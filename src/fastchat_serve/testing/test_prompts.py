"""Prompts: their kinds, and what an engine reports of them."""

from __future__ import annotations

from fastchat_serve.engine import Capability, TextPrompt, TokenPrompt
from fastchat_serve.testing.marks import in_both_forms, needs
from fastchat_serve.testing.subject import PROMPTS, Subject

pytestmark = needs(Capability.GENERATE)


@needs(Capability.TEXT_PROMPT)
async def test_text_is_continued(subject: Subject) -> None:
    """A `TextPrompt` is answered."""
    answer = await subject.answer(subject.request(TextPrompt(PROMPTS[0])))
    assert answer.usage.prompt_tokens > 0


@needs(Capability.TOKEN_PROMPT, Capability.TEXT_PROMPT, Capability.TOKENIZE)
async def test_ids_are_used_as_they_are(subject: Subject) -> None:
    """A `TokenPrompt` of the ids of a text has the answer of the text."""
    text = TextPrompt(PROMPTS[0])
    ids = await subject.tokenizer.tokenize(text)
    by_text = await subject.answer(subject.request(text))
    by_ids = await subject.answer(subject.request(TokenPrompt(ids)))
    assert by_ids.usage.prompt_tokens == len(ids)
    subject.expect_same(by_ids, by_text, "the answer to the ids")


async def test_is_not_reported_unasked(subject: Subject) -> None:
    """No chunk has `prompt`, or log-probabilities, that nobody asked for."""
    answer = await subject.answer(subject.request())
    assert all(chunk.prompt is None for chunk in answer.chunks)
    assert all(chunk.logprobs is None for chunk in answer.chunks)


@needs(Capability.ECHO)
@in_both_forms
async def test_echo_is_in_the_first_chunk(subject: Subject, form: str) -> None:
    """With `echo` the first chunk, and no other, reports the prompt; it is no part of the answer."""
    for prompt in PROMPTS:
        plain = await subject.answer(subject.request(prompt))
        echoed = await subject.answer(subject.again(plain.request, echo=True), form)
        assert echoed.prompt.text
        assert all(chunk.prompt is None for chunk in echoed.chunks[1:])
        subject.expect_same(echoed, plain, "the answer with echo")


@needs(Capability.ECHO, Capability.TOKENIZE)
async def test_echo_has_the_ids(subject: Subject) -> None:
    """The echoed ids are those that `tokenize` gives."""
    for prompt in PROMPTS:
        request = subject.request(prompt, echo=True, max_tokens=2)
        if not isinstance(request.prompt, TokenPrompt):
            answer = await subject.answer(request)
            assert answer.prompt.token_ids == await subject.tokenizer.tokenize(request.prompt)


@needs(Capability.ECHO, Capability.TEXT_PROMPT)
async def test_echo_has_the_text(subject: Subject) -> None:
    """The echoed text is the prompt's; special tokens may be about it."""
    answer = await subject.answer(subject.request(TextPrompt(PROMPTS[0]), echo=True, max_tokens=2))
    assert PROMPTS[0] in answer.prompt.text


@needs(Capability.PROMPT_LOGPROBS)
@in_both_forms
async def test_prompt_logprobs_are_one_per_token(subject: Subject, form: str) -> None:
    """`prompt_logprobs` has one entry per token of the prompt, None for the first, at most 0 for the others."""
    for alternatives in (0, 3):
        request = subject.request(max_tokens=2, prompt_logprobs=alternatives)
        answer = await subject.answer(request, form)
        tokens = answer.prompt.logprobs
        assert tokens is not None
        assert len(tokens) == len(answer.prompt.token_ids) == answer.usage.prompt_tokens
        assert tuple(token.token_id for token in tokens) == answer.prompt.token_ids
        assert tokens[0].logprob is None
        for token in tokens[1:]:
            assert token.logprob is not None
            assert token.logprob <= 0
            assert len(token.top) <= alternatives
            ranked = [other.logprob or 0.0 for other in token.top]
            assert ranked == sorted(ranked, reverse=True)
