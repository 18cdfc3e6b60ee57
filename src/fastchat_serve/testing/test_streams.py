"""Streams: what every chunk is, in both forms, and that both forms say the same."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fastchat_serve.engine import Capability, Chunk, Usage
from fastchat_serve.testing.marks import in_both_forms, needs
from fastchat_serve.testing.subject import PROMPTS, Subject
from fastchat_serve.worker.contract import flaw

pytestmark = needs(Capability.GENERATE)

ENOUGH_TO_TELL = 3
"""Chunks with text: one that repeats all text before it is no accident then."""


@in_both_forms
async def test_ends_with_a_finish_reason(subject: Subject, form: str) -> None:
    """Every answer ends with a chunk that says why: "stop" or "length"."""
    for prompt in PROMPTS:
        answer = await subject.answer(subject.request(prompt), form)
        assert answer.finish_reason in ("stop", "length")


@in_both_forms
async def test_finish_reason_and_usage_are_on_the_last_chunk_only(subject: Subject, form: str) -> None:
    """`finish_reason`, `stop_match` and `usage` are on the last chunk, and nothing comes after it."""
    for prompt in PROMPTS:
        answer = await subject.read(subject.request(prompt), form)
        assert answer.error is None, f"it ended with {answer.error!r}"
        assert answer.last.finish_reason is not None
        assert answer.last.usage is not None
        for chunk in answer.chunks[:-1]:
            assert (chunk.finish_reason, chunk.stop_match, chunk.usage) == (None, None, None)


@in_both_forms
async def test_chunks_are_of_their_types(subject: Subject, form: str) -> None:
    """A chunk is a `Chunk`, its text a `str`, its ids a tuple of integers, its usage counts."""
    answer = await subject.answer(subject.request(), form)
    for chunk in answer.chunks:
        assert type(chunk) is Chunk
        assert flaw(chunk) == ""
        assert isinstance(chunk.token_ids, tuple)
        assert all(type(token_id) is int and token_id >= 0 for token_id in chunk.token_ids)
    assert type(answer.usage) is Usage
    subject.note(f"{len(answer.chunks)} chunks for {answer.usage.completion_tokens} tokens")


@in_both_forms
async def test_text_is_new(subject: Subject, form: str) -> None:
    """`text` is what is new since the chunk before, never all of it so far."""
    told = False
    for prompt in PROMPTS:
        answer = await subject.answer(subject.request(prompt), form)
        texts = [chunk.text for chunk in answer.chunks if chunk.text]
        if len(texts) < ENOUGH_TO_TELL:
            continue
        told = True
        so_far = [after.startswith(before) for before, after in pairwise(texts)]
        assert not all(so_far), f"every chunk repeats the one before: {texts[:4]}"
    if not told:
        pytest.skip("the answers come in too few chunks to tell")


@in_both_forms
async def test_characters_are_whole(subject: Subject, form: str) -> None:
    """Every code point is complete: no half of a surrogate pair, and no U+FFFD where a character was cut."""
    for prompt in PROMPTS:
        answer = await subject.answer(subject.request(prompt), form)
        for chunk in answer.chunks[:-1]:
            chunk.text.encode()
            assert "\ufffd" not in chunk.text, f"{chunk.text!r} has a part of a character"
        # An answer that is cut off within a character may end in one mark for it.
        assert "\ufffd" not in answer.text.removesuffix("\ufffd")


@needs(Capability.TOKEN_IDS, Capability.TOKENIZE)
async def test_text_and_ids_are_one_answer(subject: Subject) -> None:
    """Detokenized, the ids of an answer are its text, the stop token apart."""
    for prompt in PROMPTS:
        answer = await subject.answer(subject.request(prompt))
        drawn = answer.token_ids if answer.finish_reason == "length" else answer.token_ids[:-1]
        whole = await subject.engine.detokenize(answer.token_ids)  # type: ignore[attr-defined]
        but_last = await subject.engine.detokenize(drawn)  # type: ignore[attr-defined]
        text = answer.text.strip().removesuffix("\ufffd")
        assert but_last.strip().startswith(text) or whole.strip().startswith(text), (answer.text, whole)


async def test_the_push_form_ends_exactly_once(subject: Subject) -> None:
    """In the push form `end` is called once, last, on the loop's thread, with None after a whole answer."""
    for prompt in PROMPTS:
        sink = await subject.push(subject.request(prompt))
        assert sink.faults == []
        assert sink.ends == [None]
        sink.answer.whole()


async def test_both_forms_say_the_same(subject: Subject) -> None:
    """`generate_stream` and the push form give the same text, ids, usage and end."""
    for prompt in PROMPTS:
        request = subject.request(prompt)
        pulled = await subject.answer(request, "generator")
        pushed = await subject.answer(subject.again(request), "push")
        subject.expect_same(pushed, pulled, "the pushed answer")
        subject.expect_equal(pushed.stop_match, pulled.stop_match, "the stop match of the pushed answer")
        assert pushed.usage.prompt_tokens == pulled.usage.prompt_tokens


async def test_greedy_answers_are_repeatable(subject: Subject) -> None:
    """At temperature 0 the same request has the same answer."""
    for index, prompt in enumerate(PROMPTS):
        again = await subject.answer(subject.request(prompt))
        subject.expect_same(again, await subject.greedy(index), "the second answer")


async def test_fewer_tokens_are_a_beginning(subject: Subject) -> None:
    """A greedy answer of fewer tokens is the beginning of one of more."""
    answer = await subject.baseline(characters=8)
    for most in (1, 2, 5, 8):
        shorter = await subject.answer(subject.again(answer.request, max_tokens=most))
        beginning = shorter.text.removesuffix("\ufffd")
        subject.expect_equal(beginning, answer.text[: len(beginning)], f"the beginning of {most} tokens")


async def test_usage_counts_the_prompt(subject: Subject) -> None:
    """`prompt_tokens` is what `tokenize` or an echo gives, where declared; `cached_tokens` are among them."""
    for prompt in PROMPTS:
        request = subject.request(prompt, max_tokens=4)
        usage = (await subject.answer(request)).usage
        assert usage.prompt_tokens >= 1
        assert 0 <= usage.cached_tokens <= usage.prompt_tokens
        if subject.can(Capability.TOKENIZE):
            ids = await subject.engine.tokenize(request.prompt)  # type: ignore[attr-defined]
            assert usage.prompt_tokens == len(ids)
        if subject.can(Capability.ECHO):
            echoed = await subject.answer(subject.again(request, echo=True))
            assert usage.prompt_tokens == len(echoed.prompt.token_ids)


async def test_usage_counts_a_longer_prompt_as_longer(subject: Subject) -> None:
    """Twice the prompt has more `prompt_tokens`."""
    once = await subject.answer(subject.request(subject.prompt(), max_tokens=1))
    twice = await subject.answer(subject.request(subject.prompt(times=2), max_tokens=1))
    assert twice.usage.prompt_tokens > once.usage.prompt_tokens


@needs(Capability.TOKEN_IDS)
@in_both_forms
async def test_usage_counts_every_token_id(subject: Subject, form: str) -> None:
    """Every drawn token is in exactly one chunk, the stop token included, and `completion_tokens` counts them."""
    for prompt in PROMPTS:
        for most in (1, 3, subject.settings.tokens):
            answer = await subject.answer(subject.request(prompt, max_tokens=most), form)
            assert answer.usage.completion_tokens == len(answer.token_ids)


async def test_answers_are_counted_as_load(subject: Subject) -> None:
    """While an answer is under way, `current_load` counts it."""
    most, sinks = 0, []

    def look(_: Chunk) -> None:
        nonlocal most
        most = max(most, subject.busy)

    for _ in range(min(4, subject.settings.concurrency)):
        sinks.append(subject.begin(subject.request(max_tokens=4 * subject.settings.tokens), on_push=look))
    most = max(most, subject.busy)
    for sink in sinks:
        (await subject.until(sink.ended())).whole()
    assert most > 0, "the load was 0 all the time"
    subject.note(f"up to {most} of {len(sinks)}")
