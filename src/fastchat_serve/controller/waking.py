"""Requests for models whose engines have to be loaded first (``load = "first_request"``, ``idle_unload_s``).

A worker is woken only if no other worker of its model takes requests. How many may wait for it, and for how long, is
the worker's own business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus

from fastchat_serve.controller.registry import Registry
from fastchat_serve.errors import EngineError, Overloaded, ServeError, Unavailable
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

    def must_wait(self, model: str) -> bool:
        """Whether a request for `model` has to wait for a worker, and there is one to wait for."""
        return self._sleeper(model, frozenset()) is not None

    async def wake(self, model: str) -> None:
        """Return once a worker of `model` takes requests, if one can be woken.

        If it refuses or leaves, another one is woken. Raises what the last of them said, as `Worker.wake` does.
        """
        refusal: ServeError | None = None
        tried: set[str] = set()
        while (worker := self._sleeper(model, tried)) is not None:
            try:
                await worker.wake()
                return
            except (Overloaded, Unavailable) as error:
                if error.code == "loading":  # it has waited for as long as a request may
                    raise
                refusal = error
                tried.add(worker.id)
        if refusal is not None and not self._is_served(model):
            raise refusal

    def wait_for(self, model: str, then: Then) -> Callable[[], None]:
        """`wake`, and call `then`, with what that raised if it did.

        Returns:
            To be called by whoever does not want to wait any more; `then` is not called after that.
        """
        assert self._tasks is not None, "nobody can wait yet"
        scope = anyio.CancelScope()
        self._tasks.start_soon(self._wait, model, then, scope)
        return scope.cancel

    # -------------------------------------------------------------------------------------------------

    async def _wait(self, model: str, then: Then, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                await self.wake(model)
            except ServeError as error:
                then(error)
            except Exception:  # the boundary to foreign code
                logger.exception("Model %r could not be woken.", model)
                then(EngineError("The model could not be loaded."))
            else:
                then(None)

    def _sleeper(self, model: str, tried: Container[str]) -> Worker | None:
        """Whom to wake; None if nobody can be, or need be."""
        sleeping: list[Worker] = []
        for worker in self._registry.serving(model):
            if worker.state is WorkerState.READY:
                return None
            if worker.wakes and worker.id not in tried:
                sleeping.append(worker)
        return min(sleeping, key=_trouble, default=None)

    def _is_served(self, model: str) -> bool:
        return any(worker.state is WorkerState.READY for worker in self._registry.serving(model))


def _trouble(worker: Worker) -> tuple[bool, int, float]:
    """One that is full is of no use; one that loads already is best; else the one with the fewest that wait."""
    return worker.full, worker.queue_length if worker.state is not WorkerState.LOADING else -1, worker.back_in_s
