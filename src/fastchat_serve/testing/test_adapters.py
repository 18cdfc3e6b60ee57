"""Adapters: the engine's own, and no others."""

from __future__ import annotations

from fastchat_serve.engine import Capability
from fastchat_serve.errors import InvalidRequest
from fastchat_serve.testing.marks import needs
from fastchat_serve.testing.subject import Subject

pytestmark = needs(Capability.GENERATE, Capability.ADAPTERS)

MOST = 3


async def test_each_answers(subject: Subject) -> None:
    """Every adapter of `info.adapters` answers, and the model without one answers as before."""
    plain = await subject.greedy(0)
    others = 0
    for adapter in subject.info.adapters[:MOST]:
        answer = await subject.answer(subject.request(adapter=adapter))
        others += answer.text != plain.text
        subject.expect_same(await subject.answer(subject.request()), plain, "the answer without adapter")
    subject.note(f"{others} of {len(subject.info.adapters[:MOST])} answer in another way")


async def test_each_is_a_model(subject: Subject) -> None:
    """Clients ask for an adapter as for a model of that name."""
    for adapter in subject.info.adapters[:MOST]:
        assert subject.dispatcher.registry.serving(adapter)


async def test_an_unknown_one_is_refused(subject: Subject) -> None:
    """An adapter that is not in `info.adapters` is an `InvalidRequest`."""
    assert isinstance(await subject.refusal(subject.request(adapter="no-such-adapter")), InvalidRequest)
