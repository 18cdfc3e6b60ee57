"""Death: an engine that breaks for good says so, and nobody waits for it.

An engine with the optional method `die` is broken by it: the method must do to the engine what a crash would do. Of
others the processes that they have started are killed; one without either is not tried.
"""

from __future__ import annotations

import time
from contextlib import suppress

import anyio
import psutil
import pytest

from fastchat_serve.engine import Capability
from fastchat_serve.errors import ServeError, Unavailable
from fastchat_serve.testing.answers import SinkOfAnswer
from fastchat_serve.testing.marks import needs
from fastchat_serve.testing.resources import children
from fastchat_serve.testing.subject import MODEL, POLL_S, Subject
from fastchat_serve.testing.test_constraints import ROOM, constraints_of
from fastchat_serve.worker.base import WorkerState

pytestmark = needs(Capability.GENERATE)

VISIBLE_WITHIN = 2
"""Times the grace for an abort: from the death until `fatal_error` is set and the worker has seen it."""


def kill(subject: Subject) -> bool:
    """Break the engine, and say whether that is surely its end; skips the check if there is no way."""
    if callable(die := getattr(subject.engine, "die", None)):
        die()
        return True
    victims = [child for child in children() if child.pid not in subject.others]
    if not victims:
        pytest.skip("it has no process to kill and no method `die`")
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    subject.note(f"{len(victims)} processes killed")
    return False


async def test_is_well(subject: Subject) -> None:
    """While an engine is well, its `fatal_error` is None, whatever requests it has refused or given up before."""
    assert subject.engine.fatal_error is None
    assert subject.worker.state is WorkerState.READY


async def test_ends_all_streams(subject: Subject) -> None:
    """When it dies all its streams end with an error, `fatal_error` is set, and its worker goes out of service.

    If the processes that were killed were mere helpers, the engine serves on, whatever it is asked.
    """
    long = {"max_tokens": 4 * subject.settings.tokens, "ignore_eos": subject.can(Capability.IGNORE_EOS)}
    sinks = [subject.begin(subject.request(**long)) for _ in range(2)]
    sinks += [subject.dispatch(subject.request(**long)) for _ in range(2)]
    await subject.until(sinks[0].has(1))
    began = time.monotonic()
    is_dead = kill(subject)
    answers = [await subject.until(sink.ended()) for sink in sinks]
    for answer in answers:
        assert answer.error is None or isinstance(answer.error, ServeError), repr(answer.error)
        assert answer.error is not None or answer.finish_reason is not None, "a stream ended without a word"
    if is_dead or any(answer.error for answer in answers) or subject.engine.fatal_error is not None:
        await sees_its_death(subject, began)
    else:
        await serves_on(subject)


async def sees_its_death(subject: Subject, began: float) -> None:
    with anyio.fail_after(VISIBLE_WITHIN * subject.settings.grace_s):
        while subject.engine.fatal_error is None or subject.worker.state is not WorkerState.FAILED:  # noqa: ASYNC110
            await anyio.sleep(POLL_S)
    subject.note(f"visible after {1000 * (time.monotonic() - began):.0f} ms")
    assert subject.worker.reason
    request = subject.request()
    with pytest.raises(Unavailable):
        subject.dispatcher.start(MODEL, request, SinkOfAnswer(request))


async def serves_on(subject: Subject) -> None:
    subject.note("they were helpers: it serves on")
    subject.expect_same(await subject.answer(subject.request()), await subject.greedy(0), "the next answer")
    for constraint in constraints_of(subject):
        await subject.answer(subject.request(constraint=constraint, max_tokens=ROOM))


async def test_is_followed_by_another(subject: Subject) -> None:
    """After a death the same process can open another engine, which answers as the first did."""
    subject.expect_same(await subject.answer(subject.request()), await subject.greedy(0), "the new engine's answer")
