"""Characters: those of several bytes come whole, however tokens cut them."""

from __future__ import annotations

import pytest

from fastchat_serve.engine import Capability, Choice
from fastchat_serve.testing.marks import in_both_forms, needs
from fastchat_serve.testing.subject import MANY_BYTES, Subject

pytestmark = needs(Capability.GENERATE)

LONG = "naïve 東京 🍮 Ω"
"""Characters of one to four bytes."""


@needs(Capability.CHOICE)
@in_both_forms
async def test_a_forced_answer_is_exact(subject: Subject, form: str) -> None:
    """An answer that can only be one text of long characters is this text, each chunk in whole characters."""
    answer = await subject.answer(subject.request(constraint=Choice((LONG,)), max_tokens=64), form)
    assert answer.text == LONG
    assert all("\ufffd" not in chunk.text for chunk in answer.chunks)


@needs(Capability.CHOICE, Capability.RESUME_GREEDY)
async def test_resuming_within_a_character(subject: Subject) -> None:
    """An answer resumed within a character goes on with the whole of it."""
    answer = await subject.answer(subject.request(constraint=Choice((LONG,)), max_tokens=64))
    sent, ids = "", 0
    for chunk in answer.chunks[:-1]:
        sent, ids = sent + chunk.text, ids + len(chunk.token_ids)
        rest = await subject.answer(subject.again(answer.request, resume_token_ids=answer.token_ids[:ids]))
        assert sent + rest.text == LONG, f"resumed after {ids} tokens"


@in_both_forms
async def test_a_long_character_can_stop(subject: Subject, form: str) -> None:
    """A stop string of one character that has several bytes ends the answer before it."""
    whole = await subject.greedy(MANY_BYTES)
    long = [character for character in dict.fromkeys(whole.text) if len(character.encode()) > 1]
    if not long:
        pytest.skip("the answer has no character of several bytes")
    for character in long[:4]:
        answer = await subject.answer(subject.again(whole.request, stop=(character,)), form)
        subject.expect_equal(answer.text, whole.text.partition(character)[0], f"the text before {character!r}")
        subject.expect_equal(answer.stop_match, character, "the stop match")
    subject.note(f"{len(long)} such characters")
