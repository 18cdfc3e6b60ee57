"""What is served now: FastChat's controllers list what works, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable

from fastchat_serve.controller.registry import Registry
from fastchat_serve.errors import Unavailable
from fastchat_serve.protocol.fastchat import WorkerStatus
from fastchat_serve.worker.base import Worker, WorkerState

__all__ = ["is_served", "models_served", "ready", "status", "workers_of"]


def ready(workers: Iterable[Worker]) -> list[Worker]:
    """Those that take requests."""
    return [worker for worker in workers if worker.state is WorkerState.READY]


def models_served(registry: Registry) -> tuple[str, ...]:
    """All that are served, sorted."""
    return tuple(name for name in registry.models if is_served(registry, name))


def is_served(registry: Registry, model: str) -> bool:
    """Whether `model` has a worker that takes requests, or one that is loaded for whoever asks first."""
    return any(worker.state is WorkerState.READY or worker.wakes for worker in registry.serving(model))


def workers_of(registry: Registry, model: str) -> list[Worker]:
    """The workers of a model that take requests; at least one. Raises `ModelNotFound` or `Unavailable`."""
    listed = registry.serving(model)
    if not listed:
        raise registry.missing(model)
    found = ready(listed)
    if not found:
        raise Unavailable(
            "The model cannot be served now. Try again later.",
            retry_after_s=min(worker.back_in_s for worker in listed),
        )
    return found


def status(registry: Registry) -> WorkerStatus:
    """All workers together, as a controller says it of its own, and a worker of itself."""
    found = ready(registry.workers)
    return WorkerStatus(
        model_names=models_served(registry),
        speed=sum(worker.speed for worker in found),
        queue_length=sum(worker.queue_length for worker in found),
    )
