"""What the server itself costs: CPU time per token and per request on `echo`, against a bare ASGI app.

Both run under the same uvicorn. Nothing but this repository is needed for it; `gateway.py` measures the
same against other servers.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from http.client import HTTPConnection

from tests.bench.report import Plan, Report, Verdict
from tests.bench.servers import API_KEY, Server, bare, cpu_s, ours

__all__ = ["measure"]

CLIENTS = 16
TOKENS = 128
WORKER = """
[[worker]]
backend = "echo"
names = ["echo"]
concurrency = 256
[worker.options]
loop = true
"""
CASES = (("stream, µs/token", TOKENS), ("request of one token, µs", 1))


def measure(plan: Plan) -> Report:
    """CPU per token of streams, and per plain reply of one token."""
    costs: dict[tuple[str, str], list[float]] = {}
    with bare() as baseline, ours(WORKER) as product:
        for number in range(plan.rounds):
            for what, tokens in CASES:
                for name, server in (("bare ASGI", baseline), ("fastchat-serve", product)):
                    plan.progress(f"{what}, round {number + 1} of {plan.rounds}: {name}")
                    cost = _cost_us(server, tokens, seconds=1.0 if plan.quick else 4.0)
                    costs.setdefault((what, name), []).append(cost)
    report = Report(tables={"CPU per unit, against a bare ASGI app": []})
    (rows,) = report.tables.values()
    for what, _ in CASES:
        base, cost = (statistics.median(costs[what, name]) for name in ("bare ASGI", "fastchat-serve"))
        rows.append({"what": what, "bare ASGI": base, "fastchat-serve": cost, "ratio": cost / base})
        report.verdicts.append(Verdict(what=f"{what}: ours / bare ASGI", measured=cost / base, at_most=True))
    return report


def _cost_us(server: Server, tokens: int, seconds: float) -> float:
    """CPU microseconds of the server per token, under `CLIENTS` closed-loop clients."""
    stop = threading.Event()
    counts = [0] * CLIENTS
    threads = [threading.Thread(target=_client, args=(server.port, tokens, counts, i, stop)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    begin, before = sum(counts), cpu_s(server.pid)
    time.sleep(seconds)
    end, after = sum(counts), cpu_s(server.pid)
    stop.set()
    for thread in threads:
        thread.join(10)
    return (after - before) * 1e6 / max(1, end - begin)


def _client(port: int, tokens: int, counts: list[int], number: int, stop: threading.Event) -> None:
    body = json.dumps(
        {
            "model": "echo",
            "stream": tokens > 1,
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": "a b c d"}],
        }
    ).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"}
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    while not stop.is_set():
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        response.read()
        assert response.status == 200, response.status
        counts[number] += tokens
    connection.close()
