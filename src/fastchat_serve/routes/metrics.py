"""``GET /metrics``: what Prometheus scrapes.

Names and labels of requests follow OpenTelemetry's semantic conventions for generative AI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/). Label values are bounded: models
are those that are served here, errors those of `errors.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from fastchat_serve.controller.failover import Moves
from fastchat_serve.controller.registry import Registry
from fastchat_serve.engine import Usage
from fastchat_serve.errors import ServeError
from fastchat_serve.routes.histogram import Histogram
from fastchat_serve.routes.openapi import documented
from fastchat_serve.routes.response import IdentifiedResponse
from fastchat_serve.watchdog import Watchdog
from fastchat_serve.worker.base import WorkerState

if TYPE_CHECKING:
    from fastchat_serve.routes.siblings import Siblings

__all__ = ["Metrics", "Observation", "Operation"]

Operation = Literal["chat", "text_completion", "embeddings"]

# The buckets that the conventions advise, in seconds and tokens.
_DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = tuple(4.0**power for power in range(14))
_BLOCKED_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_LABELS = ("gen_ai_operation_name", "gen_ai_request_model")


class Metrics:
    """The metrics of one server.

    Args:
        registry: Whose workers the gauges read, at scrape time.
        watchdog: Whose blocks are counted.
        moves: Of answers between workers.

    Attributes:
        lost_log_lines: How many there were so far; set by whoever writes the log.
    """

    def __init__(self, registry: Registry, watchdog: Watchdog, moves: Moves) -> None:
        self.collectors = CollectorRegistry()
        self.lost_log_lines: Callable[[], int] = lambda: 0
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "Time from a request's arrival to the end of its reply. error_type: empty if it succeeded.",
            (*_LABELS, "error_type"),
            _DURATION_S,
            self.collectors,
        )
        self._first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Time from a request's arrival to its first token.",
            _LABELS,
            _FIRST_TOKEN_S,
            self.collectors,
        )
        self._per_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Mean time between the tokens of one request, after the first.",
            _LABELS,
            _PER_TOKEN_S,
            self.collectors,
        )
        self._tokens = Histogram(
            "gen_ai_client_token_usage_tokens",
            "Tokens of one request.",
            (*_LABELS, "gen_ai_token_type"),
            _TOKENS,
            self.collectors,
        )
        self.collectors.register(_Workers(registry))
        self.collectors.register(_Log(self))
        self.collectors.register(_Moved(moves))
        blocked = Histogram(
            "fastchat_event_loop_blocked_seconds",
            "Blocks of the event loop that were longer than 50 ms: all streams stood still.",
            (),
            _BLOCKED_S,
            self.collectors,
        )
        watchdog.on_block = blocked.labels().observe
        lag = Gauge("fastchat_event_loop_lag_seconds", "By how much the loop is late now.", registry=self.collectors)
        lag.set_function(lambda: watchdog.lag_s)
        # Looking labels up costs more than counting; the cache is bounded by operations times models.
        self._child = cache(self._bind)

    def begin(self, operation: Operation, model: str, waited_s: float = 0.0) -> Observation:
        """Call when a request for a served model has arrived, or so long after."""
        return Observation(self._child(operation, model), waited_s)

    def _bind(self, operation: Operation, model: str) -> _Children:
        return _Children(self, operation, model)

    def handler(self, siblings: Siblings | None = None) -> HTTPRouteHandler:
        """The route. It needs a key like any other. With `siblings`, it tells of them as well."""

        opt = documented("Metrics for Prometheus, as text", "operators", str, media_type="text/plain")

        @get("/metrics", opt=opt)
        async def metrics(request: Request[Any, Any, Any]) -> IdentifiedResponse[bytes]:
            text = generate_latest(self.collectors)
            if siblings is not None and siblings.are_meant(request.headers):
                text = await siblings.with_theirs(text.decode())
            # Litestar adds "; charset=utf-8", as the format has it.
            return IdentifiedResponse(text, media_type="text/plain; version=0.0.4")

        return metrics


class _Children:
    """The metrics of one operation on one model, labels bound."""

    def __init__(self, metrics: Metrics, operation: Operation, model: str) -> None:
        self.first_token = metrics._first_token.labels(operation, model)
        self.per_token = metrics._per_token.labels(operation, model)
        self.input = metrics._tokens.labels(operation, model, "input")
        self.output = metrics._tokens.labels(operation, model, "output")
        self.duration = cache(lambda error_type: metrics._duration.labels(operation, model, error_type))


class Observation:
    """One request's figures. `finish` counts once; later calls do nothing."""

    __slots__ = ("_arrived_s", "_children", "_finished", "_first_s")

    def __init__(self, children: _Children, waited_s: float) -> None:
        self._children = children
        self._arrived_s = time.monotonic() - waited_s
        self._first_s: float | None = None
        self._finished = False

    def first_token(self) -> None:
        """A token is on its way; only the first call counts."""
        if self._first_s is not None:
            return
        self._first_s = time.monotonic()
        self._children.first_token.observe(self._first_s - self._arrived_s)

    def finish(self, usage: Usage | None, error: ServeError | None = None, *, left: bool = False) -> None:
        """The reply is complete. `left`: the client did not stay for it."""
        if self._finished:
            return
        self._finished = True
        now, children = time.monotonic(), self._children
        error_type = (error.code or error.type) if error is not None else "client_left" if left else ""
        children.duration(error_type).observe(now - self._arrived_s)
        if usage is None:
            return
        children.input.observe(usage.prompt_tokens)
        children.output.observe(usage.completion_tokens)
        if self._first_s is not None and usage.completion_tokens > 1:
            children.per_token.observe((now - self._first_s) / (usage.completion_tokens - 1))


class _Workers:
    """What is read off the workers when somebody asks."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        labels = ("worker", "model")
        running = GaugeMetricFamily("fastchat_worker_running", "Requests that hold a slot.", labels=labels)
        waiting = GaugeMetricFamily("fastchat_worker_waiting", "Requests that wait for a slot.", labels=labels)
        slots = GaugeMetricFamily("fastchat_worker_slots", "Slots.", labels=labels)
        kv_used = GaugeMetricFamily(
            "fastchat_worker_kv_used_fraction", "Share of the engine's key-value memory in use.", labels=labels
        )
        ready = GaugeMetricFamily("fastchat_worker_ready", "1 if the worker takes requests.", labels=labels)
        restarts = CounterMetricFamily(
            "fastchat_worker_restarts", "How often the engine broke and was opened anew.", labels=labels
        )
        protocol_errors = CounterMetricFamily(
            "fastchat_engine_protocol_errors", "How often the engine broke the contract.", labels=labels
        )
        for worker in self._registry.workers:
            load, of = worker.load(), (worker.id, worker.names[0])
            running.add_metric(of, load.running)
            waiting.add_metric(of, load.waiting)
            slots.add_metric(of, load.slots)
            kv_used.add_metric(of, load.engine.kv_used_fraction)
            ready.add_metric(of, worker.state is WorkerState.READY)
            restarts.add_metric(of, worker.restarts)
            protocol_errors.add_metric(of, worker.protocol_errors)
        yield from (running, waiting, slots, kv_used, ready, restarts, protocol_errors)


class _Moved:
    """What is read off the dispatcher."""

    def __init__(self, moves: Moves) -> None:
        self._moves = moves

    def collect(self) -> Iterator[Metric]:
        moved = CounterMetricFamily(
            "fastchat_moved_answers",
            "Answers that went on at another worker: retried before their first token, or resumed after it.",
            labels=("how",),
        )
        for how, count in self._moves.counts.items():
            moved.add_metric((how,), count)
        yield moved


class _Log:
    """What is read off the log."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "fastchat_log_lines_lost", "Log lines that could not be written.", self._metrics.lost_log_lines()
        )
