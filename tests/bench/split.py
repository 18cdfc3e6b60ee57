"""What an API process costs in front of workers in processes of their own, beside gateways in the same place.

The API process alone is measured, with keys and metrics on, as it is shipped; a controller and two workers with the
engine of `backend/` run beside it, on the core of the mock and the client. All gateways have two mocks behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.bench.gateway import OURS, WORKERS, Workload, measure_cells, report
from tests.bench.harness import GATEWAYS, Harness, HarnessError, running
from tests.bench.report import Plan, Report
from tests.bench.servers import API_KEY, Server, configured, listed

__all__ = ["WORKLOADS", "measure"]

TOKEN = "bench"
WORKER_PROCESSES = 2
WORKLOADS = (
    Workload(
        name="chat-c32",
        streamed=False,
        at_least={
            "sglang-router": (1.3, 1.8),
            "vllm-router": (1.2, 1.6),
            "FastChat": (45, 65),
            "LiteLLM": (130, 185),
            "nginx": (0.3, 0.45),
        },
    ),
    Workload(
        name="paced-1000",
        streamed=True,
        at_least={"sglang-router": (1.25, 1.5), "vllm-router": (1.2, 1.45), "nginx": (0.9, 1.05)},
        lag_p99_ms=6.0,
        rss_mb=100.0,
        leaves_out=frozenset({"FastChat", "LiteLLM"}),
    ),
    Workload(
        name="stream-c32",
        streamed=True,
        at_least={"sglang-router": (2.6, 4.6), "vllm-router": (3.4, 6), "FastChat": (120, 215), "LiteLLM": (270, 480)},
    ),
    Workload(name="paced-1", streamed=True, at_least={}, added_ttft_ms=0.4),
    Workload(name="stream-c1", streamed=True, at_least={}, added_ttft_ms=0.4),
)
"""Rows 2, 6 and 7 of the figures that were promised, and the time to the first token: of one stream on an idle machine,
whose processes have to wake up for it, and of one after the other, while workers and client share a core."""


def measure(plan: Plan) -> Report:
    """Without the harness there is nothing to compare with, and the report says so."""
    try:
        with running(plan.harness, GATEWAYS) as harness, _cluster(harness) as product:
            cells, problems = measure_cells(plan, harness, product, WORKLOADS)
            complaints = product.complaints()
            said = [f"{OURS} logged {len(complaints)} complaints, first: {complaints[0]}"] if complaints else []
            return report(cells, [*harness.missing, *problems, *said], WORKLOADS, GATEWAYS)
    except HarnessError as error:
        return Report(tables={}, notes=[f"Not measured: {error}"])


@contextmanager
def _cluster(harness: Harness) -> Iterator[Server]:
    """The API process."""
    cluster = f'[cluster]\ntoken = "{TOKEN}"\n'
    with ExitStack() as processes:

        def start(tables: str, core: int) -> Server:
            return processes.enter_context(configured(cluster + tables, core=core))

        controller = start("[controller]\n", harness.load_core)
        where = f'controllers = ["{controller.url}"]\n'
        for _ in range(WORKER_PROCESSES):
            start(WORKERS.replace("[[worker]]\n", f"[[worker]]\n{where}"), harness.load_core)
        api = start(f'[api]\nkeys = ["{API_KEY}"]\n{where}', harness.gateway_core)
        for model in ("stream", "plain"):
            listed(api, model, WORKER_PROCESSES)
        yield api
