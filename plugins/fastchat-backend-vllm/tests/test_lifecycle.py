"""Death, loading again, and starts that fail."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from vllm_answers import answer, asking, needs_vllm, opened, until

from fastchat_serve import Chunk, ConfigError, EngineError, StartupError

pytestmark = needs_vllm


def running() -> list[str]:
    """The processes under this one that are vLLM's."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(process.cmdline()):
                found.append(process.name())
        except psutil.Error:  # it has just ended
            continue
    return found


async def rest(stream: AsyncGenerator[Chunk, None]) -> list[Chunk]:
    async with asyncio.timeout(5):
        return [chunk async for chunk in stream]


async def test_a_killed_engine_process_ends_every_stream_and_can_be_opened_anew(demo: Path) -> None:
    async with opened(demo) as engine:
        streams = [engine.generate_stream(asking(id=f"{i}", max_tokens=400, ignore_eos=True)) for i in range(3)]
        for stream in streams:
            await anext(stream)
        (process,) = engine._processes
        killed = time.monotonic()
        os.kill(process.pid, signal.SIGKILL)

        for stream in streams:
            with pytest.raises(EngineError):
                await rest(stream)
        await until(lambda: engine.fatal_error is not None)
        assert time.monotonic() - killed < 1
        with pytest.raises(EngineError):
            await answer(engine, asking())
    await until(lambda: not running(), 20)

    async with engine:
        assert engine.fatal_error is None
        assert (await answer(engine, asking())).last.finish_reason is not None
        assert running()
    await until(lambda: not running(), 20)


async def test_the_loop_lives_while_a_model_loads_and_a_start_can_be_given_up(demo: Path) -> None:
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - began)

    async def start() -> None:
        async with opened(demo):
            pass

    watching, starting = asyncio.create_task(watch()), asyncio.create_task(start())
    await until(lambda: bool(running()) or starting.done(), 120)
    starting.cancel()
    began = time.monotonic()
    await asyncio.wait([starting], timeout=30)
    watching.cancel()

    assert starting.cancelled()
    assert time.monotonic() - began < 20
    assert longest < 2, "the loop stood still"


OPENER = """
import sys, time, anyio
from pathlib import Path
from vllm_answers import opened

async def main():
    async with opened(Path(sys.argv[1])) as engine:
        print("children", *[process.pid for process in engine._processes], flush=True)
        await anyio.sleep(600)

if __name__ == "__main__":
    anyio.run(main)
"""


async def test_a_killed_server_leaves_no_process_of_vllms_behind(demo: Path, tmp_path: Path) -> None:
    script = tmp_path / "opener.py"
    script.write_text(OPENER)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    async with await anyio.open_process(
        [sys.executable, str(script), str(demo)], env=environment, stderr=None
    ) as server:
        assert server.stdout is not None
        said = b""
        with anyio.fail_after(300):
            while b"children" not in said or not said.endswith(b"\n"):
                said += await server.stdout.receive()
        (core,) = map(int, said.split(b"children")[1].split())
        family = [psutil.Process(core), *psutil.Process(core).children(recursive=True)]
        server.kill()

    await until(lambda: not any(psutil.pid_exists(member.pid) and alive(member) for member in family), 20)


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"extra": {"blok_size": 32}}, ConfigError, "block_size"),
        ({"quantization": "nonsense"}, StartupError, "vLLM does not take the model"),
        ({"max_model_len": 100_000}, StartupError, "vLLM does not take the model"),
        ({"chat_template": Path("nowhere.jinja")}, ConfigError, "nowhere"),
        ({"adapters": {"a": Path("nowhere")}}, StartupError, "the adapter 'a'"),
    ],
    ids=["extra", "quantization", "context", "template", "adapter"],
)
async def test_a_start_that_cannot_succeed_says_why(
    demo: Path, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        async with opened(demo, **options):
            pass


async def test_a_folder_without_a_model_is_a_start_up_error(tmp_path: Path) -> None:
    with pytest.raises(StartupError):
        async with opened(tmp_path):
            pass
