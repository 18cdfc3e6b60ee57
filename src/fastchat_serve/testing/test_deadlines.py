"""Deadlines: a request that is over its time ends, and the engine lets go of it."""

from __future__ import annotations

import pytest

from fastchat_serve.engine import Capability
from fastchat_serve.errors import DeadlineExceeded
from fastchat_serve.testing.marks import in_both_forms, needs
from fastchat_serve.testing.subject import Subject

pytestmark = needs(Capability.GENERATE)

SHORT_S = 0.15
LONG_S = 600.0


def endless(subject: Subject, **fields: float) -> dict[str, object]:
    """As many tokens as may be had."""
    room = min(subject.info.context_length // 2, 20_000)
    return {"max_tokens": room, "ignore_eos": subject.can(Capability.IGNORE_EOS), **fields}


async def test_are_kept_by_the_worker(subject: Subject) -> None:
    """Through the server, an answer that is not done within `timeout_s` ends with `DeadlineExceeded`."""
    sink = subject.dispatch(subject.request(**endless(subject, timeout_s=SHORT_S)))
    answer = await subject.until(sink.ended())
    if answer.error is None:
        pytest.skip(f"the answer of {answer.usage.completion_tokens} tokens was done in time")
    assert isinstance(answer.error, DeadlineExceeded), repr(answer.error)
    subject.note(f"let go {1000 * await subject.idle():.0f} ms later")


@in_both_forms
async def test_are_known_to_the_engine(subject: Subject, form: str) -> None:
    """An engine that ends an answer by `timeout_s` itself says `DeadlineExceeded`; otherwise it goes on."""
    answer = await subject.read(subject.request(timeout_s=0.01), form)
    if answer.error is not None:
        assert isinstance(answer.error, DeadlineExceeded), repr(answer.error)
    else:
        answer.whole()
    await subject.idle()


async def test_far_ones_change_nothing(subject: Subject) -> None:
    """A `timeout_s` and a `priority` that matter to nobody leave the answer as it is."""
    answer = await subject.answer(subject.request(timeout_s=LONG_S, priority=3, tenant="somebody"))
    subject.expect_same(answer, await subject.greedy(0), "the answer with a far deadline")
