"""Bad input: refused by name, before the first chunk, and nobody else hears of it."""

from __future__ import annotations

import pytest

from fastchat_serve.engine import Capability, ChatPrompt, Message, TextPrompt, TokenPrompt
from fastchat_serve.errors import InvalidRequest, ServeError
from fastchat_serve.testing.marks import in_both_forms, needs
from fastchat_serve.testing.subject import Subject

pytestmark = needs(Capability.GENERATE)

HALF = "half \ud83d of a pair"
NOT_IN_ANY_VOCABULARY = (-1, 2**31 - 1, 2**63)


async def serves_on(subject: Subject) -> None:
    await subject.idle()
    subject.expect_same(await subject.answer(subject.request()), await subject.greedy(0), "the next answer")


@in_both_forms
async def test_half_a_character_in_the_prompt(subject: Subject, form: str) -> None:
    """A prompt with half of a surrogate pair is an `InvalidRequest`, and the next request is served."""
    error = await subject.refusal(subject.request(HALF), form)
    assert isinstance(error, InvalidRequest), repr(error)
    await serves_on(subject)


@needs(Capability.CHAT)
async def test_half_a_character_in_any_turn(subject: Subject) -> None:
    """So is one in an earlier turn, or in a role."""
    question = Message(role="user", content="Hello?")
    for turn in (Message(role="system", content=HALF), Message(role="us\ud83der", content="Hello?")):
        error = await subject.refusal(subject.request(ChatPrompt((turn, question))))
        assert isinstance(error, InvalidRequest), repr(error)
    await serves_on(subject)


@needs(Capability.TOKEN_PROMPT)
@pytest.mark.parametrize("token_id", NOT_IN_ANY_VOCABULARY)
async def test_ids_of_no_token(subject: Subject, token_id: int) -> None:
    """An id outside the vocabulary is an `InvalidRequest`, whatever others are beside it."""
    for ids in ((token_id,), (10, 11, token_id)):
        error = await subject.refusal(subject.request(TokenPrompt(ids)))
        assert isinstance(error, InvalidRequest), repr(error)
    await serves_on(subject)


@needs(Capability.LOGIT_BIAS)
@pytest.mark.parametrize("token_id", NOT_IN_ANY_VOCABULARY)
async def test_a_bias_of_no_token(subject: Subject, token_id: int) -> None:
    """So is a `logit_bias` for such an id: what cannot be honoured is not ignored."""
    error = await subject.refusal(subject.request(logit_bias={token_id: 5.0}))
    assert isinstance(error, InvalidRequest), repr(error)
    await serves_on(subject)


@needs(Capability.RESUME_GREEDY)
async def test_resuming_after_no_token(subject: Subject) -> None:
    """`resume_token_ids` that no run can have drawn are an `InvalidRequest`, or passed over; they are no accident."""
    answer = await subject.read(subject.request(resume_token_ids=(2**31 - 1,)))
    assert answer.error is None or isinstance(answer.error, InvalidRequest), repr(answer.error)
    await serves_on(subject)


async def test_an_empty_prompt(subject: Subject) -> None:
    """An empty prompt is answered, or it is an `InvalidRequest`; it is no accident."""
    empty = []
    if subject.can(Capability.TEXT_PROMPT):
        empty.append(subject.request(TextPrompt("")))
    if subject.can(Capability.TOKEN_PROMPT):
        empty.append(subject.request(TokenPrompt(())))
    if subject.can(Capability.CHAT):
        empty.append(subject.request(ChatPrompt((Message(role="user", content=""),))))
    for request in empty:
        answer = await subject.read(request)
        assert answer.error is None or isinstance(answer.error, InvalidRequest), repr(answer.error)
        if answer.error is None:
            answer.whole()
    await serves_on(subject)


async def test_an_empty_stop_string(subject: Subject) -> None:
    """An empty stop string, which is everywhere, is an `InvalidRequest`."""
    error = await subject.refusal(subject.request(stop=("",)))
    assert isinstance(error, InvalidRequest), repr(error)
    await serves_on(subject)


async def test_messages_tell_no_secrets(subject: Subject) -> None:
    """What a client is told holds no path of this machine and no traceback."""
    requests = [subject.request(HALF), subject.request(max_tokens=subject.info.context_length)]
    for request in requests:
        error = await subject.refusal(request)
        assert isinstance(error, ServeError)
        assert not any(telltale in str(error) for telltale in ("/site-packages/", "Traceback", '.py"')), str(error)


async def test_batch_mates_are_unharmed(subject: Subject) -> None:
    """Refused requests among good ones change nothing for the good ones."""
    good = await subject.greedy(0)
    requests = [
        subject.again(good.request),
        subject.request(HALF),
        subject.again(good.request),
        subject.request(max_tokens=subject.info.context_length),
    ]
    first, bad, second, long = await subject.together(requests)
    subject.expect_same(first.whole(), good, "the answer beside bad requests")
    subject.expect_same(second.whole(), good, "the answer beside bad requests")
    assert isinstance(bad.error, InvalidRequest)
    assert isinstance(long.error, InvalidRequest)
