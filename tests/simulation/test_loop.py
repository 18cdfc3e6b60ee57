"""Virtual time for asyncio: it jumps, it never waits, and hosts can stand still."""

from __future__ import annotations

import asyncio
import time

import anyio
import pytest

from fastchat_serve.simulation.loop import SimulatedLoop, Stuck, on, run


def test_a_year_passes_in_no_time() -> None:
    async def main(loop: SimulatedLoop) -> float:
        began = loop.time()
        await asyncio.sleep(365 * 24 * 3600)
        with anyio.move_on_after(60):
            await anyio.sleep_forever()
        return loop.time() - began

    began = time.monotonic()
    assert run(main) == pytest.approx(365 * 24 * 3600 + 60)
    assert time.monotonic() - began < 5


def test_what_is_due_at_other_times_happens_in_their_order() -> None:
    async def main(loop: SimulatedLoop) -> list[tuple[str, float]]:
        seen: list[tuple[str, float]] = []

        async def wait(name: str, seconds: float) -> None:
            await anyio.sleep(seconds)
            seen.append((name, loop.time()))

        async with anyio.create_task_group() as tasks:
            for name, seconds in (("c", 3.0), ("a", 1.0), ("b", 2.5)):
                tasks.start_soon(wait, name, seconds)
        return seen

    assert run(main) == [("a", 1.0), ("b", 2.5), ("c", 3.0)]


def test_when_everybody_waits_for_nothing_it_says_so_instead_of_hanging() -> None:
    async def main(loop: SimulatedLoop) -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stuck):
        run(main)


def test_a_frozen_host_does_nothing_and_then_all_that_was_due() -> None:
    async def main(loop: SimulatedLoop) -> dict[str, list[float]]:
        ticks: dict[str, list[float]] = {"one": [], "other": []}

        async def tick(name: str) -> None:
            for _ in range(4):
                await asyncio.sleep(1)
                ticks[name].append(loop.time())

        tasks = []
        for name in ticks:
            with on(name):
                tasks.append(asyncio.create_task(tick(name)))
        await asyncio.sleep(1.5)
        loop.freeze("one")
        await asyncio.sleep(8.5)
        loop.thaw("one")
        await asyncio.gather(*tasks)
        return ticks

    assert run(main) == {"one": [1.0, 10.0, 11.0, 12.0], "other": [1.0, 2.0, 3.0, 4.0]}


def test_what_was_cancelled_while_its_host_was_frozen_does_not_happen() -> None:
    async def main(loop: SimulatedLoop) -> list[str]:
        seen: list[str] = []
        with on("one"):
            timer = loop.call_later(1, seen.append, "cancelled")
            loop.call_later(1, seen.append, "kept")
        loop.freeze("one")
        await asyncio.sleep(2)
        timer.cancel()
        loop.thaw("one")
        await asyncio.sleep(0)
        return seen

    assert run(main) == ["kept"]


def test_what_runs_on_a_killed_host_never_goes_on_and_is_cancelled_in_the_end() -> None:
    ends: list[str] = []

    async def main(loop: SimulatedLoop) -> None:
        async def work() -> None:
            try:
                await asyncio.sleep(1)
                ends.append("done")
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise

        with on("one"):
            task = asyncio.create_task(work())
        await asyncio.sleep(0.5)
        loop.kill("one")
        await asyncio.sleep(100)
        assert not task.done()
        assert ends == []

    run(main)
    assert ends == ["cancelled"]
