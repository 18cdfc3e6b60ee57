"""Requests for models whose engines have to be loaded first (``load = "first_request"``, ``idle_unload_s``).

A worker is woken only if no other worker of its model takes requests. How many may wait for it, and for how long, is
the worker's own business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus

from fastchat_serve.controller.registry import Registry
from fastchat_serve.errors import EngineError, ServeError
from fastchat_serve.worker.base import Worker, WorkerState

__all__ = ["Waking"]

logger = logging.getLogger(__name__)

Then = Callable[[ServeError | None], None]


class Waking:
    """See the module. ``await tasks.start(waking.run)``, then requests can wait without a task of their own."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._tasks: TaskGroup | None = None
        self._over = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Own those that wait, until `stop`."""
        async with anyio.create_task_group() as self._tasks:
            task_status.started()
            await self._over.wait()
            self._tasks.cancel_scope.cancel()

    def stop(self) -> None:
        """End `run`. Whoever still waits has been told before, by the worker that it waited for."""
        self._over.set()

    def sleeper(self, model: str) -> Worker | None:
        """Whom a request for `model` has to wait for; None if nobody, or if that would be in vain."""
        sleeping: list[Worker] = []
        for worker in self._registry.serving(model):
            if worker.state is WorkerState.READY:
                return None
            if worker.wakes:
                sleeping.append(worker)
        return min(sleeping, key=_trouble, default=None)

    async def wake(self, model: str) -> None:
        """Return once a worker of `model` takes requests, if one can be woken. Raises as `Worker.wake` does."""
        if (worker := self.sleeper(model)) is not None:
            await worker.wake()

    def wait_for(self, worker: Worker, then: Then) -> Callable[[], None]:
        """Call `then` once `worker` takes requests, or with the reason why it will not.

        Returns:
            To be called by whoever does not want to wait any more; `then` is not called after that.
        """
        assert self._tasks is not None, "nobody can wait yet"
        scope = anyio.CancelScope()
        self._tasks.start_soon(partial(_wait, worker, then, scope))
        return scope.cancel


async def _wait(worker: Worker, then: Then, scope: anyio.CancelScope) -> None:
    with scope:
        try:
            await worker.wake()
        except ServeError as error:
            then(error)
        except Exception:  # the boundary to foreign code
            logger.exception("Worker %s could not be woken.", worker.id)
            then(EngineError("The model could not be loaded."))
        else:
            then(None)


def _trouble(worker: Worker) -> tuple[bool, int, float]:
    """One that is full is of no use; one that loads already is best; else the one with the fewest that wait."""
    return worker.full, worker.queue_length if worker.state is not WorkerState.LOADING else -1, worker.back_in_s
