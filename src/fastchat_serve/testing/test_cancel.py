"""Cancelling: at any token, the engine lets go of the request within its bound, and serves the next."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing

import anyio

from fastchat_serve.engine import Capability
from fastchat_serve.testing.marks import needs
from fastchat_serve.testing.subject import PROMPTS, Subject

pytestmark = needs(Capability.GENERATE)

INDICES = range(17)
"""After so many chunks an answer is given up."""


async def serves_on(subject: Subject) -> None:
    subject.expect_same(await subject.answer(subject.request()), await subject.greedy(0), "the next answer")


def note_times(subject: Subject, seconds: Sequence[float]) -> None:
    ranked = sorted(seconds)
    p99 = ranked[min(len(ranked) - 1, int(0.99 * len(ranked)))]
    subject.note(f"let go within {1000 * ranked[len(ranked) // 2]:.1f} ms (p50), {1000 * p99:.1f} ms (p99)")


async def test_closing_after_every_chunk(subject: Subject) -> None:
    """`aclose()` after any number of chunks returns with nothing held: the load is what it was before."""
    await subject.greedy(0)
    times = []
    for index in INDICES:
        chunks = subject.engine.generate_stream(subject.request(max_tokens=4 * subject.settings.tokens))
        with anyio.fail_after(subject.settings.wait_s):
            for _ in range(index):
                if await anext(chunks, None) is None:
                    break
        began = time.monotonic()
        with anyio.fail_after(subject.settings.grace_s):
            await chunks.aclose()
        held = subject.busy
        assert held == 0, f"after {index} chunks and `aclose()` it still holds {held} requests"
        times.append(time.monotonic() - began)
    note_times(subject, times)
    await serves_on(subject)


async def test_aborting_after_every_chunk(subject: Subject) -> None:
    """In the push form, `abort()` after any number of chunks is followed by `end(None)` in time, and by no chunk."""
    await subject.greedy(0)
    times = []
    for index in INDICES:
        sink = subject.begin(subject.request(max_tokens=4 * subject.settings.tokens))
        await subject.until(sink.has(index))
        had_ended = bool(sink.ends)
        began = time.monotonic()
        sink.abort()
        sink.abort()  # once more does nothing
        with anyio.fail_after(subject.settings.grace_s):
            await sink.ended()
        await subject.idle()
        times.append(time.monotonic() - began)
        assert sink.ends == [None], f"after {index} chunks: {sink.ends}"
        assert had_ended or sink.faults == [], f"after {index} chunks: {sink.faults}"
    note_times(subject, times)
    await serves_on(subject)


async def test_before_the_first_chunk(subject: Subject) -> None:
    """A reader who is cancelled while waiting for the first chunk leaves nothing behind."""
    for delay_s in (0.0, 0.0, 0.001, 0.005):
        request = subject.request(PROMPTS[1], max_tokens=4 * subject.settings.tokens)
        with anyio.move_on_after(delay_s):
            async with aclosing(subject.engine.generate_stream(request)) as chunks:
                async for _ in chunks:
                    pass
        await subject.idle()
    await serves_on(subject)


async def test_a_stream_that_was_never_read(subject: Subject) -> None:
    """A generator that is closed before it is read has started nothing."""
    for _ in range(3):
        await subject.engine.generate_stream(subject.request()).aclose()
    await subject.idle()
    await serves_on(subject)


async def test_while_others_go_on(subject: Subject) -> None:
    """Answers that are given up change nothing for those beside them."""
    whole = await subject.greedy(0)
    sinks = [subject.begin(subject.again(whole.request)) for _ in range(subject.settings.concurrency)]
    given_up = sinks[1::2]
    for index, sink in enumerate(given_up):
        await subject.until(sink.has(index))
        sink.abort()
    for sink in sinks:
        answer = await subject.until(sink.ended())
        if sink not in given_up:
            subject.expect_same(answer.whole(), whole, "the answer beside those given up")
    await subject.idle()


async def test_through_the_server(subject: Subject) -> None:
    """A client who leaves frees the slot: as many leave as there are slots, again and again, and the next is served."""
    for _ in range(3):
        sinks = [
            subject.dispatch(subject.request(max_tokens=4 * subject.settings.tokens))
            for _ in range(subject.settings.concurrency)
        ]
        for index, sink in enumerate(sinks):
            await subject.until(sink.has(index % 3))
            sink.abort()
        for sink in sinks:
            await subject.until(sink.ended())
        await subject.idle()
        assert subject.worker.queue_length == 0
    await serves_on(subject)
