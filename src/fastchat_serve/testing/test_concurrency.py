"""Concurrency: many streams at once, each as if it were alone, and the event loop free for everyone else."""

from __future__ import annotations

import time
from contextlib import aclosing

import anyio
import pytest

from fastchat_serve.engine import Capability
from fastchat_serve.testing.answers import Answer
from fastchat_serve.testing.marks import in_both_forms, needs
from fastchat_serve.testing.subject import PROMPTS, Subject

pytestmark = needs(Capability.GENERATE)

SLOWNESS = 4
"""A slow reader takes so many times as long for a chunk as the engine does."""
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.25

LOOP_GAP_S = 0.25
"""The loop may be held up so long at once; longer, and every stream of the process stutters."""
ATTEMPTS = 3
"""A busy machine holds a loop up, too. But not every time."""


async def test_each_as_if_alone(subject: Subject) -> None:
    """Many streams at once, in both forms, give each the answer that it has alone."""
    count = subject.settings.concurrency
    alone = [await subject.greedy(index % len(PROMPTS)) for index in range(count)]
    for answer, expected in zip(
        await subject.together([subject.again(other.request) for other in alone]), alone, strict=True
    ):
        subject.expect_same(answer.whole(), expected, "the answer among others")
    subject.note(f"{count} streams")


async def test_of_many_lengths(subject: Subject) -> None:
    """Streams that end and begin while others run do not disturb them."""
    whole = await subject.baseline()
    requests = [
        subject.again(whole.request, max_tokens=1 + index % whole.usage.completion_tokens)
        for index in range(2 * subject.settings.concurrency)
    ]
    for request, answer in zip(requests, await subject.together(requests), strict=True):
        assert answer.whole().usage.completion_tokens <= (request.sampling.max_tokens or 0)
        beginning = answer.text.removesuffix("\ufffd")
        subject.expect_equal(beginning, whole.text[: len(beginning)], "the beginning of an answer")


async def test_more_than_there_are_slots(subject: Subject) -> None:
    """Through the server, more requests than slots are all answered, each with its own answer."""
    count = min(3 * subject.settings.concurrency, subject.settings.concurrency + 64)
    alone = [await subject.greedy(index % len(PROMPTS)) for index in range(count)]
    sinks = [subject.dispatch(subject.again(answer.request)) for answer in alone]
    for sink, expected in zip(sinks, alone, strict=True):
        subject.expect_same((await subject.until(sink.ended())).whole(), expected, "the answer through the server")
    subject.note(f"{count} requests for {subject.settings.concurrency} slots")


@in_both_forms
async def test_a_slow_reader_holds_nobody_up(subject: Subject, form: str) -> None:
    """While one stream is read slowly others are done, and the slow one comes whole nevertheless."""
    whole = await subject.baseline()
    if len(whole.chunks) < 4:
        pytest.skip("the answer comes in too few chunks")
    began = time.monotonic()
    await subject.answer(subject.again(whole.request))
    per_chunk_s = (time.monotonic() - began) / len(whole.chunks)
    pause_s = min(max(SLOWNESS * per_chunk_s, SHORTEST_PAUSE_S), LONGEST_PAUSE_S)
    for _ in range(ATTEMPTS):
        if await overtakes_a_slow_reader(subject, whole, form, pause_s):
            return
    pytest.fail("the others had to wait for the slow reader")


async def overtakes_a_slow_reader(subject: Subject, whole: Answer, form: str, pause_s: float) -> bool:
    """Whether an answer is done before another that is read slowly. Both have to be like `whole`."""
    slow, slow_is_done = Answer(whole.request), False

    async def read_slowly() -> None:
        nonlocal slow_is_done
        async with aclosing(subject.engine.generate_stream(subject.again(whole.request))) as chunks:
            async for chunk in chunks:
                slow.chunks.append(chunk)
                await anyio.sleep(pause_s)
        slow_is_done = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_slowly)
        answer = await subject.answer(subject.again(whole.request), form)
        was_first = not slow_is_done
    subject.expect_same(answer, whole, "the answer beside a slow reader")
    subject.expect_same(slow.whole(), whole, "the answer that was read slowly")
    return was_first


async def test_the_loop_is_free(subject: Subject) -> None:
    """While the engine works the event loop goes on: nothing holds it up for long."""
    await subject.greedy(0)
    worst = []
    for _ in range(ATTEMPTS):
        worst.append(await longest_gap(subject))
        if worst[-1] < LOOP_GAP_S:
            break
    subject.note(f"held up for {1000 * min(worst):.0f} ms at most")
    assert min(worst) < LOOP_GAP_S


async def longest_gap(subject: Subject) -> float:
    """The longest time for which the loop did not come round while answers were generated."""
    longest, last = 0.0, time.monotonic()

    async def watch() -> None:
        nonlocal longest, last
        while True:
            await anyio.sleep(0.001)
            now = time.monotonic()
            longest, last = max(longest, now - last), now

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await anyio.sleep(0.01)
        for answer in await subject.together([subject.request(prompt) for prompt in PROMPTS]):
            answer.whole()
        await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    return longest
