"""Unloading: an engine goes without a trace, whatever it was doing, and another can come.

These checks open engines of their own, one after the other, and come last.
"""

from __future__ import annotations

import anyio

from fastchat_serve.engine import Capability
from fastchat_serve.errors import ServeError
from fastchat_serve.push import Pusher
from fastchat_serve.testing.answers import Answer, SinkOfAnswer, read_stream
from fastchat_serve.testing.marks import needs
from fastchat_serve.testing.subject import PROMPTS, Subject

LIVES = 3
"""What grows from each of them to the next would grow for ever."""

WORTH_MB = 64
"""Memory below this is not looked at: caches and fragments."""


@needs(Capability.GENERATE)
async def test_ends_its_streams(subject: Subject) -> None:
    """Streams that run when an engine is closed end, with an error unless they were done; none is left waiting."""
    requests = [subject.request(prompt, max_tokens=4 * subject.settings.tokens) for prompt in PROMPTS]
    sinks = [SinkOfAnswer(request) for request in requests]
    pulled: list[Answer] = []

    async def pull() -> None:
        pulled.append(await read_stream(engine, subject.again(requests[0])))

    async with anyio.create_task_group() as tasks:
        async with subject.alone() as engine:
            pusher = Pusher(engine, tasks)
            for sink in sinks:
                sink.handle = pusher.start(sink.answer.request, sink)
            tasks.start_soon(pull)
            await subject.until(sinks[0].has(1))
        tasks.cancel_scope.deadline = anyio.current_time() + subject.settings.wait_s
    assert pulled, "a reader was left waiting"
    for answer in (*pulled, *(sink.answer for sink in sinks)):
        assert answer.error is None or isinstance(answer.error, ServeError), repr(answer.error)
        assert answer.error is not None or answer.finish_reason is not None, "a stream ended without a word"
    assert all(len(sink.ends) == 1 for sink in sinks), "a sink was left waiting"


async def test_can_be_cancelled(subject: Subject) -> None:
    """Cancelled while it loads or while it is open, an engine closes in bounded time, and the next opens."""
    await subject.unload()
    with anyio.fail_after(subject.settings.wait_s + 2 * subject.load_s):
        with anyio.move_on_after(min(0.05, subject.load_s / 2)):
            async with subject.fresh():
                await anyio.sleep_forever()
        with anyio.CancelScope() as scope:
            async with subject.alone() as engine:
                assert engine.fatal_error is None
                scope.cancel()
                await anyio.sleep_forever()


@needs(Capability.GENERATE)
async def test_another_answers_alike(subject: Subject) -> None:
    """An engine that is opened later in the same process gives the answers of the first."""
    if not subject.knows_greedy:
        await subject.load()
    first = await subject.greedy(0)
    async with subject.alone() as engine:
        later = await subject.until(read_stream(engine, subject.again(first.request)))
    subject.expect_same(later.whole(), first, "the later answer")


async def test_leaves_nothing_behind(subject: Subject) -> None:
    """However often an engine is opened and closed: no more threads, children, tasks, files, nor ever more memory."""
    while len(subject.held) < LIVES:
        async with subject.alone() as engine:
            if subject.can(Capability.GENERATE):
                (await subject.until(read_stream(engine, subject.request()))).whole()
    first, second, third = subject.held[-LIVES:]
    grown, again = second.grown_since(first), third.grown_since(second)
    assert not grown.keys() & again.keys(), f"growing with every life: {grown}, then {again}"
    growth = (second.memory_mb - first.memory_mb, third.memory_mb - second.memory_mb)
    subject.note(f"memory {first.memory_mb} MB, then {growth[0]:+} and {growth[1]:+}")
    assert min(growth) < max(WORTH_MB, subject.loaded_mb // 2), f"memory grows by {growth} MB"
