"""What thousands of nodes cost a controller and an API process: to list them all at once, and to keep them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.report import Plan, Report, Row, Verdict
from tests.bench.servers import configured, cpu_s, ready, rss_mb

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
    """One row per role: seconds until all are listed, and per cent of a core after that."""
    count = 200 if plan.quick else NODES
    cluster = f'[cluster]\ntoken = "{TOKEN}"\n'
    with (
        configured(f"{cluster}[controller]\n") as controller,
        configured(f'{cluster}[api]\ncontrollers = ["{controller.url}"]\nkeys = ["{TOKEN}"]\n') as api,
        _swarm(controller.url, count) as swarm,
    ):
        plan.progress(f"{count} nodes dial")
        assert swarm.stdin is not None
        began, spent = time.perf_counter(), {server.pid: cpu_s(server.pid) for server in (controller, api)}
        swarm.stdin.write("go\n")
        swarm.stdin.flush()
        listed_s = {}
        for name, server in (("controller", controller), ("api", api)):
            while ready(server, "dummy") < count:
                time.sleep(LOOK_S)
            listed_s[name] = time.perf_counter() - began
        joined = {server.pid: cpu_s(server.pid) - spent[server.pid] for server in (controller, api)}
        plan.progress("all are listed; they rest")
        time.sleep(2 if plan.quick else SETTLE_S)
        window_s = 2 if plan.quick else STEADY_S
        before = {server.pid: cpu_s(server.pid) for server in (controller, api)}
        time.sleep(window_s)
        rows: list[Row] = [
            {
                "role": name,
                "nodes": count,
                "all listed s": listed_s[name],
                "CPU s until then": joined[server.pid],
                "steady CPU %": 100 * (cpu_s(server.pid) - before[server.pid]) / window_s,
                "RSS MB": rss_mb(server.pid),
            }
            for name, server in (("controller", controller), ("api", api))
        ]
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


@contextmanager
def _swarm(url: str, count: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.swarm", url, TOKEN, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
