"""Which workers there are, and which models they serve.

It holds `Worker`s, local or remote alike, and asks them for their state; it decides nothing. The adapters of a
worker's engine are models, too.
"""

from __future__ import annotations

import time

from fastchat_serve.worker.base import Worker, WorkerState

__all__ = ["Registry"]


class Registry:
    """Workers by id and by the names of the models they serve."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._by_model: dict[str, tuple[Worker, ...]] = {}
        self._since: dict[str, int] = {}

    def add(self, worker: Worker) -> None:
        """List `worker` under all its names; one with the same id is replaced.

        Again once it is ready: only then are its adapters known.
        """
        self._workers[worker.id] = worker
        self._index()

    def remove(self, worker_id: str) -> None:
        """Forget a worker; unknown ids are passed over."""
        self._workers.pop(worker_id, None)
        self._index()

    @property
    def workers(self) -> tuple[Worker, ...]:
        return tuple(self._workers.values())

    @property
    def models(self) -> tuple[str, ...]:
        """Names of all models, sorted."""
        return tuple(sorted(self._by_model))

    def serving(self, model: str) -> tuple[Worker, ...]:
        """The workers of a model, in whatever state; empty if none is listed for it."""
        return self._by_model.get(model, ())

    def since(self, model: str) -> int:
        """When the model was first listed: Unix time in seconds."""
        return self._since[model]

    @property
    def ready(self) -> bool:
        """Every model has a worker that takes requests."""
        return bool(self._by_model) and all(
            any(worker.state is WorkerState.READY for worker in workers) for workers in self._by_model.values()
        )

    def _index(self) -> None:
        models: dict[str, list[Worker]] = {}
        for worker in self._workers.values():
            for name in dict.fromkeys(worker.names + worker.adapters):
                models.setdefault(name, []).append(worker)
        for name in models:
            self._since.setdefault(name, int(time.time()))
        self._by_model = {name: tuple(workers) for name, workers in models.items()}
