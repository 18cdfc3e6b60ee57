"""What users of the HF engine feel: tokens per second, gaps while a long prompt is read, shared prefixes, loop lag."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import numpy as np
from anyio.abc import TaskStatus
from numpy.typing import NDArray

from fastchat_backend_hf import open_hf
from fastchat_backend_hf.options import HfOptions
from fastchat_serve import EngineSetup, GenerateRequest, SamplingParams, TokenPrompt
from fastchat_serve.stepping import SteppingEngine
from tests.bench.hf_model import prompt
from tests.bench.hf_rivals import Speed, Stopwatch

__all__ = ["first_token_s", "gaps_s", "loop_lags_s", "opened", "tokens_per_s"]

_WARM_TOKENS = 4
_QUIET_S = 2.0
_LAG_TICK_S = 0.002

Gaps = NDArray[np.float64]

_numbers = itertools.count()


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[SteppingEngine]:
    setup = EngineSetup(str(folder), HfOptions(device="cpu", threads=1), lambda stage, fraction=None: None)
    engine = open_hf(setup)
    assert isinstance(engine, SteppingEngine)
    async with engine:
        yield engine


def _request(token_ids: tuple[int, ...], max_tokens: int) -> GenerateRequest:
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    return GenerateRequest(id=f"bench-{next(_numbers)}", prompt=TokenPrompt(token_ids), sampling=sampling)


async def _arrivals_s(engine: SteppingEngine, token_ids: tuple[int, ...], max_tokens: int) -> list[float]:
    """When each chunk of one answer came."""
    return [time.perf_counter() async for _ in engine.generate_stream(_request(token_ids, max_tokens))]


async def tokens_per_s(engine: SteppingEngine, count: int, new_tokens: int) -> Speed:
    """Of `count` answers at once, prompts of 32 tokens included."""
    watch = Stopwatch()
    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(_arrivals_s, engine, prompt(next(_numbers)), new_tokens)
    cost = watch.cost()
    return Speed(count * new_tokens / cost.wall, count * new_tokens / cost.cpu)


async def gaps_s(engine: SteppingEngine, streams: int, prompt_tokens: int) -> tuple[Gaps, Gaps, float]:
    """Gaps between tokens of `streams` answers: undisturbed, and while a prompt is read; and how long that took."""
    arrivals: list[list[float]] = [[] for _ in range(streams)]
    warm = [anyio.Event() for _ in range(streams)]

    async def run(number: int) -> None:
        async for _ in engine.generate_stream(_request(prompt(next(_numbers)), 4096)):
            arrivals[number].append(time.perf_counter())
            if len(arrivals[number]) == _WARM_TOKENS:
                warm[number].set()

    async with anyio.create_task_group() as tasks:
        for number in range(streams):
            tasks.start_soon(run, number)
        for event in warm:
            await event.wait()
        quiet_from = time.perf_counter()
        await anyio.sleep(_QUIET_S)
        read_from = time.perf_counter()
        read_to, *_ = await _arrivals_s(engine, prompt(next(_numbers), prompt_tokens), 1)
        tasks.cancel_scope.cancel()
    quiet = [_gaps(times, quiet_from, read_from) for times in arrivals]
    busy = [_gaps(times, read_from, read_to) for times in arrivals]
    return np.concatenate(quiet), np.concatenate(busy), read_to - read_from


def _gaps(times: list[float], begin: float, end: float) -> Gaps:
    """Gaps that overlap this span."""
    return np.array([after - before for before, after in itertools.pairwise(times) if begin < after and before < end])


async def first_token_s(engine: SteppingEngine, shared_tokens: int) -> tuple[float, float]:
    """Time to the first token of a prompt, and of another one that begins with the same tokens."""
    shared = prompt(next(_numbers), shared_tokens)
    found = []
    for _ in range(2):
        began = time.perf_counter()
        first, *_ = await _arrivals_s(engine, shared + prompt(next(_numbers), 16), 1)
        found.append(first - began)
    return found[0], found[1]


async def loop_lags_s(engine: SteppingEngine, streams: int, new_tokens: int) -> Gaps:
    """How much later than asked the event loop wakes a sleeper while the engine runs; 0 streams: while it is idle."""
    lags: list[float] = []
    async with anyio.create_task_group() as tasks:

        async def watch(*, task_status: TaskStatus[None]) -> None:
            task_status.started()
            while True:
                due = time.perf_counter() + _LAG_TICK_S
                await anyio.sleep(_LAG_TICK_S)
                lags.append(time.perf_counter() - due)

        await tasks.start(watch)
        await (tokens_per_s(engine, streams, new_tokens) if streams else anyio.sleep(_QUIET_S))
        tasks.cancel_scope.cancel()
    return np.array(lags)
