"""What a request and a token cost on the whole path of the product, beside other servers in one interleaved run.

The product runs as it is shipped, keys and metrics on, with the engine of `backend/` behind it. Every round
measures each workload at each server once, so that whatever disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from tests.bench.harness import PEERS, Cell, Harness, HarnessError, Peer, running
from tests.bench.report import Plan, Report, Row, Verdict
from tests.bench.servers import Server, ours

__all__ = ["OURS", "WORKERS", "WORKLOADS", "Workload", "measure", "measure_cells", "report"]

OURS = "fastchat-serve"
WORKERS = """
[[worker]]
backend = "mock"
names = ["stream"]
concurrency = 2048
[[worker]]
backend = "mock"
names = ["plain"]
concurrency = 2048
[worker.options]
whole = true
"""


class Workload(Struct, frozen=True, kw_only=True):
    """One of the harness's workloads, and what the product is to reach there."""

    name: str
    streamed: bool
    at_least: Mapping[str, tuple[float, float]]
    """By peer, its cost / ours: the bar, and the stretch."""
    mock: tuple[float, float] | None = None
    """ours / mock: at most, and what the best prototype reached where that was set down."""
    added_ttft_ms: float | None = None
    """TTFT p50 beyond the mock's own: at most."""
    lag_p99_ms: float | None = None
    rss_mb: float | None = None
    leaves_out: frozenset[str] = frozenset()
    """Peers that cannot hold it."""

    @property
    def unit(self) -> str:
        return "µs/token" if self.streamed else "ms/request"

    def options(self, *, quick: bool) -> dict[str, object]:
        """For the load generator."""
        if self.name.startswith("paced"):
            return {"tokens": 50, "secs": 2, "warm": 1.5} if quick else {"secs": 5}
        return {"secs": 1, "warm": 0.5} if quick else {"secs": 3, "warm": 0.7}


WORKLOADS = (
    Workload(
        name="chat-c32", streamed=False, at_least={"sglang-router": (1.3, 1.75), "nginx": (0.3, 0.4)}, mock=(5.0, 3.7)
    ),
    Workload(name="stream-c32", streamed=True, at_least={"sglang-router": (0.7, 1.05)}),
    Workload(
        name="paced-1000",
        streamed=True,
        at_least={"sglang-router": (1.25, 2.0), "nginx": (0.9, 1.4)},
        mock=(2.0, 1.25),
        lag_p99_ms=6.0,
        rss_mb=100.0,
    ),
    Workload(name="paced-256", streamed=True, at_least={"sglang-router": (1.3, 2.2), "nginx": (0.8, 1.4)}),
    Workload(
        name="prompt100k-c8",
        streamed=False,
        at_least={"sglang-router": (1.5, 2.1), "nginx": (0.65, 0.9)},
        mock=(1.8, 1.25),
    ),
)
Cells = dict[tuple[str, str], list[Cell]]
"""By workload and server, one per round."""


def measure(plan: Plan) -> Report:
    """Without the harness there is nothing to compare with, and the report says so."""
    try:
        with running(plan.harness) as harness, ours(WORKERS, core=harness.gateway_core) as product:
            cells, problems = measure_cells(plan, harness, product, WORKLOADS)
            complaints = product.complaints()
            said = [f"{OURS} logged {len(complaints)} complaints, first: {complaints[0]}"] if complaints else []
            return report(cells, [*harness.missing, *problems, *said])
    except HarnessError as error:
        return Report(tables={}, notes=[f"Not measured: {error}"])


def measure_cells(
    plan: Plan, harness: Harness, product: Server, workloads: Sequence[Workload]
) -> tuple[Cells, list[str]]:
    """All cells, and what went wrong with those that are missing."""
    cells: Cells = {}
    problems = []
    servers = [(OURS, product.url, str(product.pid))]
    servers += [(peer.name, peer.url, harness.pids(peer)) for peer in harness.peers]
    for number in range(plan.rounds):
        for workload in workloads:
            for name, url, pids in servers:
                if name in workload.leaves_out:
                    continue
                plan.progress(f"round {number + 1} of {plan.rounds}: {workload.name}: {name}")
                options = workload.options(quick=plan.quick)
                if name == OURS:
                    options["model"] = "stream" if workload.streamed else "plain"
                try:
                    cell = harness.measure(url, workload.name, pids=pids, options=options)
                except HarnessError as error:
                    problems.append(str(error))
                else:
                    cells.setdefault((workload.name, name), []).append(cell)
    return cells, problems


def report(
    cells: Cells, notes: list[str], workloads: Sequence[Workload] = WORKLOADS, peers: Sequence[Peer] = PEERS
) -> Report:
    """Tables and verdicts of what was measured; what was not is a gap in them."""
    whys = {
        f"{name}, {workload}: {why}" for (workload, name), found in cells.items() for cell in found for why in cell.why
    }
    servers = [OURS, *(peer.name for peer in peers)]
    tables = {"CPU per unit, median of the rounds": _cost_table(cells, servers, workloads)}
    for workload in workloads:
        rows = [
            _delay_row(workload, name, cells[found]) for name in servers if (found := (workload.name, name)) in cells
        ]
        tables[f"{workload.name}: rate and delay of the best round, memory"] = rows
    return Report(
        tables=tables,
        verdicts=[verdict for workload in workloads for verdict in _verdicts(workload, cells)],
        notes=[*notes, *sorted(whys)],
        raw=[
            {"workload": workload, "server": name, "round": number, **msgspec.to_builtins(cell)}
            for (workload, name), found in cells.items()
            for number, cell in enumerate(found, 1)
        ],
    )


def _cost(cells: Cells, workload: Workload, name: str) -> float:
    """CPU per unit; nan if it was not measured, or too short to cost a clock tick."""
    return _median(cells.get((workload.name, name), []), lambda cell: cell.cpu_per_unit) or math.nan


def _cost_table(cells: Cells, servers: list[str], workloads: Sequence[Workload]) -> list[Row]:
    """A row per server, a column per workload; and how much of a core others used meanwhile."""
    rows: list[Row] = [
        {"server": name, **{f"{w.name}, {w.unit}": _cost(cells, w, name) for w in workloads}} for name in servers
    ]
    others: Row = {"server": "(others' CPU, %)"}
    for workload in workloads:
        found = [cell for name in servers for cell in cells.get((workload.name, name), [])]
        others[f"{workload.name}, {workload.unit}"] = _median(found, lambda cell: cell.other_cpu_pct)
    return [*rows, others]


def _delay_row(workload: Workload, name: str, found: list[Cell]) -> Row:
    row: Row = {
        "server": name,
        "per s": max(cell.rps if cell.tok_s is None else cell.tok_s for cell in found),
        "TTFT p50 ms": _best(found, lambda cell: cell.ttft_p50),
        "TTFT p99 ms": _best(found, lambda cell: cell.ttft_p99),
    }
    if workload.streamed:
        row["lag p99 ms"] = _best(found, lambda cell: cell.lag_p99)
        row["tokens/read"] = _median(found, lambda cell: cell.tok_per_read)
    return row | {
        "RSS MB": _median(found, lambda cell: cell.rss_mb),
        "failures": sum(cell.fails for cell in found),
        "others' CPU %": _median(found, lambda cell: cell.other_cpu_pct),
    }


def _verdicts(workload: Workload, cells: Cells) -> list[Verdict]:
    """Only of what was measured."""
    mine, direct = (cells.get((workload.name, name), []) for name in (OURS, "mock"))
    ours_cost = _cost(cells, workload, OURS)
    verdicts = []

    def judge(what: str, measured: float, bar: float | None, stretch: float | None = None, **more: Any) -> None:
        if not math.isnan(measured):
            what = f"{workload.name}: {what}"
            verdicts.append(Verdict(what=what, measured=measured, bar=bar, stretch=stretch, **more))

    judge("ours / mock", ours_cost / _cost(cells, workload, "mock"), *(workload.mock or (None,)), at_most=True)
    judge("ours / asgi/fast", ours_cost / _cost(cells, workload, "asgi/fast"), None, at_most=True)
    for peer in dict.fromkeys(["sglang-router", "nginx", *workload.at_least]):
        judge(f"{peer} / ours", _cost(cells, workload, peer) / ours_cost, *workload.at_least.get(peer, (None,)))
    if workload.added_ttft_ms is not None:
        added = _best(mine, lambda cell: cell.ttft_p50) - _best(direct, lambda cell: cell.ttft_p50)
        judge("added time to the first token", added, workload.added_ttft_ms, at_most=True, unit="ms")
    if workload.lag_p99_ms is not None:
        lag, direct_lag = (_best(found, lambda cell: cell.lag_p99) for found in (mine, direct))
        judge("token lag p99", lag, workload.lag_p99_ms, at_most=True, unit="ms")
        judge("token lag p99 beyond the mock's own", lag - direct_lag, None, at_most=True, unit="ms")
    if workload.rss_mb is not None:
        judge("RSS", _median(mine, lambda cell: cell.rss_mb), workload.rss_mb, at_most=True, unit="MB")
    judge("failures", sum(cell.fails for cell in mine) if mine else math.nan, 0, at_most=True, unit="")
    return verdicts


def _median(cells: list[Cell], value: Callable[[Cell], float | None]) -> float:
    return statistics.median(found) if (found := _values(cells, value)) else math.nan


def _best(cells: list[Cell], value: Callable[[Cell], float | None]) -> float:
    """The lowest: on a shared machine delays of the other rounds are the machine's."""
    return min(_values(cells, value), default=math.nan)


def _values(cells: list[Cell], value: Callable[[Cell], float | None]) -> list[float]:
    return [found for cell in cells if (found := value(cell)) is not None]
