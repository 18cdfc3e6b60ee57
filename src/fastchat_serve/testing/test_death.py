"""Death: an engine that breaks for good says so, and nobody waits for it.

Engines that work in processes of their own have those killed. Others are broken by their optional method `die`, which
must do to the engine what a crash would do; an engine without either is not tried.
"""

from __future__ import annotations

import time

import anyio
import psutil
import pytest

from fastchat_serve.engine import Capability
from fastchat_serve.errors import ServeError, Unavailable
from fastchat_serve.testing.marks import needs
from fastchat_serve.testing.resources import children
from fastchat_serve.testing.subject import MODEL, POLL_S, Subject
from fastchat_serve.worker.base import WorkerState

pytestmark = needs(Capability.GENERATE)

VISIBLE_WITHIN = 2
"""Times the grace for an abort: from the death until `fatal_error` is set and the worker has seen it."""


def kill(subject: Subject) -> None:
    """Break the engine for good; skips the check if there is no way."""
    victims = children()
    if callable(die := getattr(subject.engine, "die", None)):
        die()
    elif victims:
        for victim in victims:
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                continue
        subject.note(f"{len(victims)} processes killed")
    else:
        pytest.skip("it has no process to kill and no method `die`")


async def test_is_well(subject: Subject) -> None:
    """While an engine is well, its `fatal_error` is None, whatever requests it has refused or given up before."""
    assert subject.engine.fatal_error is None
    assert subject.worker.state is WorkerState.READY


async def test_ends_all_streams(subject: Subject) -> None:
    """When it dies all its streams end with an error, `fatal_error` is set, and its worker goes out of service."""
    long = {"max_tokens": 4 * subject.settings.tokens, "ignore_eos": subject.can(Capability.IGNORE_EOS)}
    sinks = [subject.begin(subject.request(**long)) for _ in range(2)]
    sinks += [subject.dispatch(subject.request(**long)) for _ in range(2)]
    await subject.until(sinks[0].has(1))
    began = time.monotonic()
    kill(subject)
    for sink in sinks:
        answer = await subject.until(sink.ended())
        assert answer.error is None or isinstance(answer.error, ServeError), repr(answer.error)
        assert answer.error is not None or answer.finish_reason is not None, "a stream ended without a word"
    with anyio.fail_after(VISIBLE_WITHIN * subject.settings.grace_s):
        while subject.engine.fatal_error is None or subject.worker.state is not WorkerState.FAILED:  # noqa: ASYNC110
            await anyio.sleep(POLL_S)
    subject.note(f"visible after {1000 * (time.monotonic() - began):.0f} ms")
    assert subject.worker.reason
    with pytest.raises(Unavailable):
        subject.dispatcher.start(MODEL, subject.request(), sinks[0])


async def test_is_followed_by_another(subject: Subject) -> None:
    """After a death the same process can open another engine, which answers as the first did."""
    subject.expect_same(await subject.answer(subject.request()), await subject.greedy(0), "the new engine's answer")
