"""The watchdog over a real loop: what blocks it is counted and named, and readiness falls (G17, F16)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from fastchat_serve import watchdog
from fastchat_serve.watchdog import NAMED_S, Watchdog
from tests.end_to_end.waiting import until

pytestmark = pytest.mark.anyio


class Clock:
    """The real one, that can be put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


@asynccontextmanager
async def watching(clock: Clock | None = None) -> AsyncIterator[tuple[Watchdog, list[float]]]:
    """A watchdog at work, and the blocks it tells of."""
    dog, blocks = Watchdog(clock or Clock()), list[float]()
    dog.on_block = blocks.append
    async with anyio.create_task_group() as tasks:
        await tasks.start(dog.run)
        with anyio.fail_after(20):
            yield dog, blocks
            dog.stop()


def hog(seconds: float) -> float:
    """Block the loop, as a computation does; returns when it ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return time.time()


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == watchdog.__name__]


async def test_every_block_is_counted_with_its_length() -> None:
    async with watching() as (_, blocks):
        for seconds in (0.3, 0.2):
            hog(seconds)
            noted = len(blocks)
            await until(lambda noted=noted: len(blocks) > noted)  # type: ignore[misc]

    assert 0.3 - watchdog.TICK_S <= max(blocks) < 5


async def test_a_long_block_is_named_once_while_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    async with watching() as (_, blocks):
        ended = hog(NAMED_S + 0.75)
        await until(lambda: any(seconds > NAMED_S for seconds in blocks))

    named, goes_on = told(caplog)
    message = named.getMessage()
    assert f"blocked by tests, hog in {__file__}:" in message
    assert "test_a_long_block_is_named_once_while_it_lasts" in message, "the stack is there"
    assert named.created < ended
    assert "goes on" in goes_on.getMessage()


async def test_two_long_blocks_are_two_incidents(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "NAMED_S", 0.2)
    async with watching() as (_, blocks):
        for number in (1, 2):
            hog(0.7)
            await until(lambda number=number: len([s for s in blocks if s > 0.5]) == number)  # type: ignore[misc]

    assert sum("is blocked by" in record.getMessage() for record in told(caplog)) == 2


async def test_after_a_very_long_block_there_is_a_complaint_until_the_loop_was_well_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watchdog, "UNREADY_S", 0.2)
    clock = Clock()
    async with watching(clock) as (dog, blocks):
        assert dog.complaint == ""
        hog(0.4)
        await until(lambda: any(seconds > 0.2 for seconds in blocks))
        complaint = dog.complaint
        clock.ahead_s += watchdog.WELL_S
        assert dog.complaint == ""

    assert complaint.startswith("The event loop was blocked for 0.")
    assert "/" not in complaint


async def test_a_process_that_stood_still_accuses_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """SIGSTOP, or a lid that was closed: the thread was not on time either, so it cannot know."""
    clock = Clock()
    async with watching(clock) as (_, blocks):
        clock.ahead_s += 30
        await until(lambda: any(seconds > 25 for seconds in blocks))

    (said,) = told(caplog)
    assert "the whole process stood still" in said.getMessage()


async def test_it_ends_when_told_and_when_cancelled() -> None:
    for end in (Watchdog.stop, None):
        dog = Watchdog()
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                await tasks.start(dog.run)
                if end is None:
                    tasks.cancel_scope.cancel()
                else:
                    end(dog)
        assert "watchdog" not in [thread.name for thread in threading.enumerate()]
