"""How long the server takes until its first 200, what CPU and memory that costs; beside a bare ASGI app."""

from __future__ import annotations

import statistics

from tests.bench.report import Plan, Report, Row, Verdict
from tests.bench.servers import bare, ours, rss_mb

__all__ = ["measure"]

WORKER = """
[[worker]]
backend = "echo"
names = ["echo"]
"""
STARTS_PER_ROUND = 3
READY_BAR_S = 0.5
RSS_BAR_MB = 55.0


def measure(plan: Plan) -> Report:
    """Each start is a new process; the two take turns."""
    starts: dict[str, list[tuple[float, float, float]]] = {"bare ASGI": [], "fastchat-serve": []}
    count = plan.rounds * STARTS_PER_ROUND
    for number in range(count):
        for name, found in starts.items():
            plan.progress(f"start {number + 1} of {count}: {name}")
            with bare() if name == "bare ASGI" else ours(WORKER) as server:
                found.append((server.ready_s, server.cpu_s, rss_mb(server.pid)))
    rows: list[Row] = []
    for name, found in starts.items():
        ready, cpu, rss = zip(*found, strict=True)
        rows.append(
            {
                "server": name,
                "best s": min(ready),
                "median s": statistics.median(ready),
                "CPU s": statistics.median(cpu),
                "RSS MB": statistics.median(rss),
            }
        )
    bare_row, our_row = rows
    cpu_ratio = our_row["CPU s"] / bare_row["CPU s"]
    return Report(
        tables={"start to first 200": rows},
        verdicts=[
            Verdict(what="first 200, best", measured=our_row["best s"], bar=READY_BAR_S, at_most=True, unit="s"),
            Verdict(what="RSS at first 200", measured=our_row["RSS MB"], bar=RSS_BAR_MB, at_most=True, unit="MB"),
            Verdict(what="CPU to first 200: ours / bare ASGI", measured=cpu_ratio, at_most=True),
        ],
    )
