"""What it costs to choose a worker, by policy and by how many workers there are to choose from.

One process, no network and no engine: `Dispatcher.start` with workers of straw, from the request to the call of the
worker, with a look at all that has changed since the decision before. With one worker there is nothing to choose.
"""

from __future__ import annotations

import gc
import time
from random import Random

from fastchat_serve import ChatPrompt, GenerateRequest, Message, SamplingParams
from fastchat_serve.controller.dispatcher import Dispatcher
from fastchat_serve.controller.policies import POLICIES
from fastchat_serve.controller.registry import Registry
from tests.bench.report import Plan, Report, Row, Verdict
from tests.sinks import Remembering
from tests.straw import StrawWorker

__all__ = ["measure"]

SIZES = (1, 16, 2000)
BAR_US = 20.0
"""For the most workers."""
BATCH = 250
LIVE_PER_WORKER = 4
PROMPTS, SESSIONS = 500, 5000


def measure(plan: Plan) -> Report:
    costs: dict[tuple[int, str], list[float]] = {}
    for number in range(plan.rounds):
        for size in SIZES:
            for name in POLICIES:
                plan.progress(f"round {number + 1} of {plan.rounds}: {name} of {size}")
                costs.setdefault((size, name), []).append(_cost_us(size, name, batches=20 if plan.quick else 120))
    rows: list[Row] = [{"workers": size, **{name: min(costs[size, name]) for name in POLICIES}} for size in SIZES]
    worst = max(POLICIES, key=lambda name: min(costs[SIZES[-1], name]))
    verdict = Verdict(
        what=f"a decision among {SIZES[-1]}, the dearest policy ({worst})",
        measured=min(costs[SIZES[-1], worst]),
        bar=BAR_US,
        at_most=True,
        unit="µs",
    )
    return Report(tables={"CPU per decision, µs": rows}, verdicts=[verdict])


def _cost_us(size: int, name: str, batches: int) -> float:
    """Of the best batch: what others do to the machine's cores and caches meanwhile is not ours."""
    registry, workers = Registry(), [StrawWorker(f"worker {number}") for number in range(size)]
    for worker in workers:
        registry.add(worker)
    dispatcher, requests = Dispatcher(registry, POLICIES[name], Random(1)), _requests(batches * BATCH)
    sink, spent = Remembering(), []
    gc.collect()
    gc.disable()
    try:
        for batch in range(batches):
            of_batch = requests[batch * BATCH : (batch + 1) * BATCH]
            began = time.process_time()
            for request in of_batch:
                dispatcher.start("m", request, sink)
            spent.append(time.process_time() - began)
            _end_some(workers, LIVE_PER_WORKER * size)
    finally:
        gc.enable()
    return min(spent) / BATCH * 1e6


def _end_some(workers: list[StrawWorker], live: int) -> None:
    """So that about so many answers are under way."""
    surplus = sum(worker.queue_length for worker in workers) - live
    for worker in sorted(workers, key=lambda worker: -worker.queue_length):
        while surplus > 0 and worker.queue_length > LIVE_PER_WORKER - 1:
            worker.end_oldest()
            surplus -= 1


def _requests(count: int) -> list[GenerateRequest]:
    random = Random(2)
    return [
        GenerateRequest(
            id=f"chatcmpl-{number:032x}",
            prompt=ChatPrompt((Message(role="user", content=f"{random.randrange(PROMPTS):03}" * 200),)),
            sampling=SamplingParams(max_tokens=200),
            session=f"session {random.randrange(SESSIONS)}",
        )
        for number in range(count)
    ]
