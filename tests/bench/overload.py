"""What overload costs: goodput and refusals at ten times the capacity, and one reader that is stuck.

Requests are sent at a given rate, whatever becomes of those before (an open loop): clients that wait for
their answers cannot overload anybody. The engine is `echo` with a fixed time per token, so the capacity is
known, and the server's own work decides what is left of it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import time
from contextlib import ExitStack
from typing import Any

import uvloop
from msgspec import Struct, field

from tests.bench.report import Plan, Report, Row, Verdict
from tests.bench.servers import API_KEY, Server, ours, rss_mb

__all__ = ["measure"]

SLOTS, QUEUE, TOKENS, TOKEN_MS = 8, 32, 20, 10.0
LOADS = (1.0, 2.0, 10.0)
"""Times the capacity."""
WORKER = f"""
[[worker]]
backend = "echo"
names = ["echo"]
concurrency = {SLOTS}
queue = {QUEUE}
[worker.options]
loop = true
delay_ms = {TOKEN_MS}
"""

STUCK = 20
NEIGHBOURS = 8
FAST_WORKER = """
[[worker]]
backend = "echo"
names = ["echo"]
concurrency = 64
[worker.options]
loop = true
delay_ms = 2
"""


def measure(plan: Plan) -> Report:
    """Goodput and refusals under load, then memory and neighbours of stuck readers."""
    report = Report(tables={})
    with ours(WORKER) as server:
        _measure_loads(server, plan, report)
    with ours(FAST_WORKER) as server:
        _measure_stuck(server, plan, report)
    return report


# ------------------------------------------------------------------------------------------------ load


class Outcome(Struct):
    """What became of the requests of one window. Times in seconds."""

    answered: int = 0
    refusals: list[float] = field(default_factory=list)
    """How long each took."""


def _measure_loads(server: Server, plan: Plan, report: Report) -> None:
    seconds = 1.0 if plan.quick else 5.0
    goodputs: dict[float, list[float]] = {load: [] for load in LOADS}
    refusals: dict[float, list[list[float]]] = {load: [] for load in LOADS}
    capacity = SLOTS / (TOKENS * TOKEN_MS / 1e3)
    for number in range(plan.rounds):
        for load in LOADS:
            plan.progress(f"{load:g}× the capacity, round {number + 1} of {plan.rounds}")
            outcome = uvloop.run(_offer(server, load * capacity, seconds))
            goodputs[load].append(outcome.answered / seconds)
            refusals[load].append(outcome.refusals)
    rows: list[Row] = []
    for load in LOADS:
        rows.append(
            {
                "load": f"{load:g}×",
                "answers/s": statistics.median(goodputs[load]),
                "refused": sum(map(len, refusals[load])),
                "refusal p50, ms": _median_ms(refusals[load], 50),
                "refusal p99, ms": _median_ms(refusals[load], 99),
            }
        )
    report.tables[f"Overload: {SLOTS} slots, {QUEUE} places, capacity {capacity:g} answers/s"] = rows
    medians = {load: statistics.median(goodputs[load]) for load in LOADS}
    kept = medians[LOADS[-1]] / max(medians.values())
    report.verdicts += [
        Verdict(what="goodput at 10× the load / peak", measured=kept, bar=0.95),
        Verdict(what="refusal at 10×, p99", measured=rows[-1]["refusal p99, ms"], bar=20.0, at_most=True, unit="ms"),
    ]


async def _offer(server: Server, rate: float, seconds: float) -> Outcome:
    """Send `rate` requests a second, once the slots and the queue have had time to fill; count what ends meanwhile."""
    outcome, idle = Outcome(), list[_Client]()
    body = {"model": "echo", "prompt": "a b c d", "max_tokens": TOKENS, "stream": True}
    counting = False

    async def one() -> None:
        client = idle.pop() if idle else await _Client.connected(server)
        began = time.perf_counter()
        status, _ = await client.request(body)
        if counting and status == 200:
            outcome.answered += 1
        elif counting:
            outcome.refusals.append(time.perf_counter() - began)
        idle.append(client)

    async with asyncio.TaskGroup() as tasks:
        warm_up = SLOTS / rate + 2 * TOKENS * TOKEN_MS / 1e3 * (1 + QUEUE / SLOTS)
        began = time.perf_counter()
        sent = 0
        while (now := time.perf_counter() - began) < warm_up + seconds:
            counting = now >= warm_up
            while sent < now * rate:
                tasks.create_task(one())
                sent += 1
            await asyncio.sleep(1e-3)
        counting = False
    for client in idle:
        client.close()
    return outcome


# ---------------------------------------------------------------------------------------- stuck readers


def _measure_stuck(server: Server, plan: Plan, report: Report) -> None:
    seconds = 1.0 if plan.quick else 4.0
    times: dict[bool, list[list[float]]] = {False: [], True: []}
    held_kib = []
    for number in range(plan.rounds):
        for stuck in (False, True):
            plan.progress(f"{'one reader stuck' if stuck else 'all read'}, round {number + 1} of {plan.rounds}")
            with ExitStack() as readers:
                if stuck:
                    readers.enter_context(_stuck_reader(server))
                times[stuck].append(uvloop.run(_neighbours(server, seconds)))
        plan.progress(f"{STUCK} readers stuck, round {number + 1} of {plan.rounds}")
        held_kib.append(_memory_of_stuck_kib(server))
    p99 = {stuck: _median_ms(values, 99) for stuck, values in times.items()}
    report.tables["A reader that is stuck"] = [
        {"": "neighbours' p99 without it, ms", "figure": p99[False]},
        {"": "neighbours' p99 with it, ms", "figure": p99[True]},
        {"": "memory of the process that it holds, KiB", "figure": statistics.median(held_kib)},
    ]
    report.verdicts += [
        Verdict(what="neighbours of a stuck reader, p99", measured=p99[True] / p99[False], bar=1.2, at_most=True),
        Verdict(
            what="memory of a stuck reader", measured=statistics.median(held_kib), bar=256.0, at_most=True, unit="KiB"
        ),
    ]


async def _neighbours(server: Server, seconds: float) -> list[float]:
    """How long streams of 20 tokens take, one after the other by each neighbour."""
    times: list[float] = []
    body = {"model": "echo", "prompt": "a b c d", "max_tokens": 20, "stream": True}

    async def one() -> None:
        client = await _Client.connected(server)
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            status, _ = await client.request(body)
            assert status == 200, status
            times.append(time.perf_counter() - began)
        client.close()

    await asyncio.gather(*(one() for _ in range(NEIGHBOURS)))
    return times


def _memory_of_stuck_kib(server: Server) -> float:
    """What each of `STUCK` readers holds once its stream was cut off. It is freed when they leave."""
    before = rss_mb(server.pid)
    with ExitStack() as readers:
        for _ in range(STUCK):
            readers.enter_context(_stuck_reader(server, "x" * 2000))
        uvloop.run(_until_idle(server))
        return (rss_mb(server.pid) - before) * 1024 / STUCK


def _stuck_reader(server: Server, word: str = "word") -> socket.socket:
    """A client that asks for an endless stream and reads none of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect(("127.0.0.1", server.port))
    client.sendall(_post({"model": "echo", "prompt": word, "max_tokens": 100_000, "stream": True}))
    return client


async def _until_idle(server: Server) -> None:
    client = await _Client.connected(server)
    async with asyncio.timeout(60):
        while True:
            _, body = await client.exchange(_head("GET", "/cluster/workers"))
            (worker,) = json.loads(body)["workers"]
            if worker["running"] == 0:
                break
    client.close()


# ----------------------------------------------------------------------------------------------- client


class _Client:
    """One kept connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connected(cls, server: Server) -> _Client:
        return cls(*await asyncio.open_connection("127.0.0.1", server.port))

    async def request(self, body: dict[str, Any]) -> tuple[int, bytes]:
        """Status and body of a completion."""
        return await self.exchange(_post(body))

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if b"transfer-encoding: chunked" in head:
            body = await self._reader.readuntil(b"\r\n0\r\n\r\n")
        else:
            body = await self._reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        return int(head.split()[1]), body

    def close(self) -> None:
        self._writer.close()


def _post(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    more = f"content-type: application/json\r\ncontent-length: {len(data)}\r\n"
    return _head("POST", "/v1/completions", more) + data


def _head(method: str, path: str, more: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {API_KEY}\r\n{more}\r\n"
    return head.encode()


def _median_ms(rounds: list[list[float]], percent: int) -> float:
    """Of the rounds' quantiles, in milliseconds; of rounds with too few values nothing is known."""
    quantiles = [statistics.quantiles(values, n=100)[percent - 1] for values in rounds if len(values) > 1]
    return statistics.median(quantiles) * 1e3 if quantiles else float("nan")
