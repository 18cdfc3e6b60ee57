"""L1: whatever a network and the processes on it do, nothing is lost silently, and all is well once they have stopped.

One seed is one run. ``FASTCHAT_SIMULATION_SEEDS=10000 pytest tests/simulation/test_faulty_clusters.py`` tries more;
``FASTCHAT_SIMULATION_FIRST=123`` begins there, to see one again.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections import Counter
from random import Random
from unittest import mock

import pytest
from msgspec import Struct

from fastchat_serve.simulation.loop import SimulatedLoop, run
from fastchat_serve.worker import dial
from tests.simulation.cluster import Api, Cluster, Ledger
from tests.sinks import a_request

TEXT = "é😀 or not to be, that is the question"
"""It takes almost two seconds, so that faults happen while it comes."""
SEEDS = int(os.environ.get("FASTCHAT_SIMULATION_SEEDS", "1000"))
FIRST = int(os.environ.get("FASTCHAT_SIMULATION_FIRST", "0"))
BATCHES = 20
REQUESTS = 12
FAULTS = 5
STORM_S = 5.0
"""How long faults go on."""
HEALED_S = 2.5
"""After the last fault all is to be known everywhere again: a second for the next attempt to dial, and its time-out."""
SETTLED_S = 15.0
"""And all requests are to have ended."""
WHOLE = 0.8
"""Of all answers that had the time: as many are to come whole, in spite of everything."""
SLACK_S = 4.0
"""Of a deadline: a frozen worker is found out in two seconds, and so is the next."""


async def suffer(cluster: Cluster, rng: Random) -> None:
    """One fault after another, at times that chance decides."""
    network = cluster.loop.network
    for _ in range(FAULTS):
        await asyncio.sleep(rng.expovariate(FAULTS / STORM_S))
        process, other = rng.sample(cluster.processes, 2)
        match rng.choice(["kill", "kill", "freeze", "cut", "cut", "reset", "slow", "thaw"]):
            case "kill" if process in cluster.controllers:
                cluster.kill(process)
                await cluster.new_controller(int(process.address[1:]))
            case "kill" if process in cluster.workers:
                cluster.kill(process)
                await cluster.new_worker()
            case "kill":
                cluster.kill(process)
                await cluster.new_api()
            case "freeze":
                cluster.freeze(process)
            case "cut":
                network.cut(process.address, other.address)
                cluster.cuts.append((process.address, other.address))
            case "reset":
                network.reset(process.address, other.address)
            case "slow":
                network.delay_s = (0.05, 0.4)
            case "thaw":
                cluster.thaw_all()


class Outcome(Struct, frozen=True, kw_only=True):
    """Of one request, as its client saw it."""

    id: str
    text: str
    ended_at: float
    error: str
    left: bool


async def live(loop: SimulatedLoop, seed: int) -> list[Outcome]:
    """A cluster's life with faults in it. Returns what its clients saw."""
    rng = Random(seed)
    cluster = Cluster(
        loop, rng, controllers=rng.choice([1, 1, 2]), apis=rng.choice([1, 1, 2]), workers=rng.choice([2, 2, 3])
    )
    await cluster.start()
    ledger = Ledger()
    await until_whole(cluster, 5.0)
    storm = asyncio.create_task(suffer(cluster, rng))
    for number in range(REQUESTS):
        await asyncio.sleep(rng.expovariate(REQUESTS / STORM_S))
        apis = [api for api in cluster.apis if api.alive and api not in cluster.frozen]
        if apis:
            entry = rng.choice(apis).ask(ledger, cluster.request(number, TEXT))
            if rng.random() < 0.1:
                loop.call_later(rng.random(), entry.leave)
    await storm
    loop.network.delay_s = (0.0002, 0.002)
    for cut in cluster.cuts:
        loop.network.mend(*cut)
    cluster.thaw_all()
    await until_whole(cluster, HEALED_S)
    for _ in range(round(SETTLED_S / 0.1)):
        if all(entry.ends for entry in ledger.entries if entry.api.alive):
            break
        await asyncio.sleep(0.1)
    ledger.check(TEXT, SLACK_S)
    await asyncio.sleep(1.0)
    for host in cluster.workers:
        if host.alive:
            assert host.worker.load().running == 0, f"{host.name} keeps a slot (G4)"
    for api in living_apis(cluster):  # what was healed serves
        entry = api.ask(ledger, a_request(TEXT, id="last"))
        await asyncio.sleep(3.0)
        assert [error for _, error in entry.ends] == [None], f"{api.name} does not serve"
    ledger.check(TEXT, SLACK_S)
    return [
        Outcome(
            id=entry.request.id,
            text="".join(chunk.text for chunk in entry.chunks),
            ended_at=entry.ends[0][0],
            error="" if entry.ends[0][1] is None else str(getattr(entry.ends[0][1], "code", "")),
            left=entry.left,
        )
        for entry in ledger.entries
        if entry.api.alive
    ]


def living_apis(cluster: Cluster) -> list[Api]:
    return [api for api in cluster.apis if api.alive]


async def until_whole(cluster: Cluster, within_s: float) -> None:
    """Wait until every API has every worker, and every controller as well (G10)."""
    deadline = cluster.loop.time() + within_s
    wanted = sum(host.alive for host in cluster.workers)
    while True:
        known = {api.name: api.ready() for api in living_apis(cluster)}
        if set(known.values()) == {wanted}:
            return
        assert cluster.loop.time() < deadline, f"of {wanted} workers there are {known} (G10)"
        await asyncio.sleep(0.1)


def life(seed: int) -> list[Outcome]:
    """With everything that would otherwise come from elsewhere drawn from the seed."""
    ids = Random(f"ids {seed}")

    async def main(loop: SimulatedLoop) -> list[Outcome]:
        with (
            mock.patch.object(time, "monotonic", loop.time),
            mock.patch.object(uuid, "uuid4", side_effect=lambda: uuid.UUID(int=ids.getrandbits(128), version=4)),
            mock.patch.object(dial, "random", mock.Mock(Random=lambda: Random(ids.random()))),
        ):
            return await live(loop, seed)

    return run(main, seed=seed)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_g1_to_g7_g10_and_g12_hold_whatever_happens(batch: int) -> None:
    found: Counter[str] = Counter()
    for seed in range(FIRST + batch, FIRST + SEEDS, BATCHES):
        try:
            found.update(outcome.error or "whole" for outcome in life(seed) if not outcome.left)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    in_time = found.total() - found["total_timeout"]
    assert found["whole"] >= WHOLE * in_time, found  # else errors would be explicit, and much too many


@pytest.mark.parametrize("seed", [7, 11, 19])
def test_one_seed_is_one_run(seed: int) -> None:
    assert life(seed) == life(seed)
