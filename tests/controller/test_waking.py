"""Who is woken for a request, and who is not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from fastchat_serve.controller.registry import Registry
from fastchat_serve.controller.waking import Waking
from fastchat_serve.errors import Overloaded, ServeError, Unavailable
from fastchat_serve.worker.base import WorkerState
from tests.straw import StrawWorker

pytestmark = pytest.mark.anyio


class Sleeper(StrawWorker):
    """Asleep; `answer` is what comes of waking it."""

    def __init__(self, id_: str, answer: Callable[[], ServeError | None] = lambda: None) -> None:
        super().__init__(id_)
        self.state = WorkerState.UNLOADED
        self.answer, self.woken = answer, 0

    @property
    def wakes(self) -> bool:
        return self.state is WorkerState.UNLOADED

    async def wake(self) -> None:
        self.woken += 1
        await anyio.lowlevel.checkpoint()
        if (error := self.answer()) is not None:
            raise error
        self.state = WorkerState.READY


def waking_of(*workers: StrawWorker) -> Waking:
    registry = Registry()
    for worker in workers:
        registry.add(worker)
    return Waking(registry)


@asynccontextmanager
async def running(waking: Waking) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        await tasks.start(waking.run)
        yield
        waking.stop()


async def test_nobody_is_woken_while_another_worker_of_the_model_takes_requests() -> None:
    asleep = Sleeper("asleep")
    waking = waking_of(asleep, StrawWorker("ready"))
    assert not waking.must_wait("m")
    await waking.wake("m")
    assert asleep.woken == 0


async def test_a_model_that_nobody_can_be_woken_for_is_not_waited_for() -> None:
    broken = StrawWorker("broken")
    broken.put(state=WorkerState.FAILED)
    waking = waking_of(broken)
    assert not waking.must_wait("m")
    assert not waking.must_wait("unknown")
    await waking.wake("m")


async def test_one_is_woken_and_the_other_sleeps_on() -> None:
    one, other = Sleeper("one"), Sleeper("other")
    waking = waking_of(one, other)
    assert waking.must_wait("m")
    await waking.wake("m")
    assert sorted([one.woken, other.woken]) == [0, 1]


@pytest.mark.parametrize("refusal", [Unavailable("It is leaving."), Overloaded("Too many wait.")])
async def test_if_one_refuses_another_is_woken(refusal) -> None:
    one, other = Sleeper("one", lambda: refusal), Sleeper("other")
    one.back_in_s, other.back_in_s = 1.0, 2.0
    await waking_of(one, other).wake("m")
    assert (one.woken, other.woken) == (1, 1)


async def test_if_all_refuse_the_last_ones_reason_is_told() -> None:
    sleepers = [Sleeper("one", lambda: Unavailable("one")), Sleeper("other", lambda: Unavailable("other"))]
    with pytest.raises(Unavailable, match=r"one|other"):
        await waking_of(*sleepers).wake("m")
    assert [sleeper.woken for sleeper in sleepers] == [1, 1]


async def test_who_has_waited_for_as_long_as_a_request_may_does_not_wait_for_another() -> None:
    one = Sleeper("one", lambda: Unavailable("It is still being loaded.", code="loading"))
    other = Sleeper("other")
    one.back_in_s, other.back_in_s = 1.0, 2.0
    with pytest.raises(Unavailable):
        await waking_of(one, other).wake("m")
    assert other.woken == 0


async def test_who_is_refused_while_another_worker_has_come_goes_there() -> None:
    ready = StrawWorker("ready")
    ready.put(state=WorkerState.LOADING)

    def refuse() -> ServeError:
        ready.put(state=WorkerState.READY)
        return Unavailable("It is leaving.")

    sleeper = Sleeper("one", refuse)
    await waking_of(sleeper, ready).wake("m")
    assert (sleeper.woken, ready.state) == (1, WorkerState.READY)


async def test_whoever_has_no_task_is_called_back_once_unless_he_leaves() -> None:
    said: list[ServeError | None] = []
    waking = waking_of(Sleeper("one"))
    async with running(waking):
        leave = waking.wait_for("m", said.append)
        leave()
        waking.wait_for("m", said.append)
        with anyio.fail_after(5):
            while not said:
                await anyio.lowlevel.checkpoint()
    assert said == [None]
