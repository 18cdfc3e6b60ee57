"""What thousands of nodes cost a controller and an API process: to list them all at once, and to keep them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.bench.report import Plan, Report, Row, Verdict
from tests.bench.servers import Server, configured, cpu_s, ready, rss_mb

__all__ = ["measure"]

NODES = 2000
LISTED_BAR_S = 2.0
STEADY_BAR = 5.0
STEADY_S = 20.0
SETTLE_S = 12.0
"""Until links that nothing is asked for have come to rest."""
LOOK_S = 0.02
TOKEN = "bench"


def measure(plan: Plan) -> Report:
    """One row per role: seconds until it lists all, and per cent of a core after that."""
    count = 200 if plan.quick else NODES
    window_s = 2 if plan.quick else STEADY_S
    cluster = f'[cluster]\ntoken = "{TOKEN}"\n'
    api_tables = f'{cluster}[api]\nkeys = ["{TOKEN}"]\n'
    with configured(f"{cluster}[controller]\n") as controller, _swarm(controller.url, count) as dial:
        plan.progress(f"{count} nodes dial")
        began, spent = time.perf_counter(), cpu_s(controller.pid)
        dial()
        rows = [_joined("controller", controller, count, began, spent)]
        plan.progress("an API process dials them all")
        began = time.perf_counter()
        with configured(f'{api_tables}controllers = ["{controller.url}"]\n') as api:
            rows.append(_joined("api", api, count, began, 0.0))
            plan.progress("they rest")
            time.sleep(2 if plan.quick else SETTLE_S)
            before = {server.pid: cpu_s(server.pid) for server in (controller, api)}
            time.sleep(window_s)
            for row, server in zip(rows, (controller, api), strict=True):
                row["steady CPU %"] = 100 * (cpu_s(server.pid) - before[server.pid]) / window_s
                row["RSS MB"] = rss_mb(server.pid)
    verdicts = [
        Verdict(
            what=f"all of {count} listed", measured=rows[0]["all listed s"], bar=LISTED_BAR_S, at_most=True, unit="s"
        ),
        *(
            Verdict(what=f"{row['role']}, steady", measured=row["steady CPU %"], bar=STEADY_BAR, at_most=True, unit="%")
            for row in rows
        ),
    ]
    return Report(tables={"many nodes": rows}, verdicts=verdicts)


def _joined(role: str, server: Server, count: int, began: float, spent: float) -> Row:
    """Once it lists all: how long that took, since `began` and beyond the CPU that was `spent` by then."""
    while ready(server, "dummy") < count:
        time.sleep(LOOK_S)
    listed_s = time.perf_counter() - began
    return {"role": role, "nodes": count, "all listed s": listed_s, "CPU s until then": cpu_s(server.pid) - spent}


@contextmanager
def _swarm(url: str, count: int) -> Iterator[Callable[[], None]]:
    """Have that many nodes listen; they dial when what this yields is called."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.swarm", url, TOKEN, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def go() -> None:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()

    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield go
    finally:
        process.kill()
        process.wait()
