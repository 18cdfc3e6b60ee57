"""What operators have done to workers while all run: drained, loaded, unloaded, reloaded, and called by other names.

A worker may be of this process or of another one; the latter's is asked to do it, over the link to it. What takes time
is an `Operation`: it goes on, and ends, whether or not whoever began it is still there to see it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus

from fastchat_serve.controller.registry import Registry
from fastchat_serve.errors import (
    ConfigError,
    EngineError,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    ServeError,
    StartupError,
    shutting_down,
)
from fastchat_serve.worker.base import Worker
from fastchat_serve.worker.crew import Crew, Recipe
from fastchat_serve.worker.memory import collect_garbage

if TYPE_CHECKING:
    from fastchat_serve.protocol.link import Obey
    from fastchat_serve.worker.remote import RemoteWorker

__all__ = ["Operation", "Operations"]

logger = logging.getLogger(__name__)


class Operation:
    """See the module.

    Args:
        what: For the log.
        more: Those that have come to it since.

    Attributes:
        error: Why it failed, once it is over; None: it did not.
    """

    def __init__(self, what: str, workers: Iterable[Worker] = (), more: Callable[[], Iterable[Worker]] = tuple) -> None:
        self.what = what
        self._workers, self._more = list(workers), more
        self.error: ServeError | None = None
        self.over = anyio.Event()

    @property
    def workers(self) -> list[Worker]:
        """Those that it is about."""
        return [*self._workers, *self._more()]

    def add(self, worker: Worker) -> None:
        self._workers.append(worker)


class Operations:
    """See the module. ``await tasks.start(operations.run)``, then there can be some.

    Args:
        crew: The workers of this process.
        registry: All that are known here.
        recipe: Makes one of a table ``[[worker]]`` in JSON; called in a thread. Raises `ConfigError`.
    """

    def __init__(self, crew: Crew, registry: Registry, recipe: Callable[[Mapping[str, Any]], Recipe]) -> None:
        self._crew, self._registry, self._recipe = crew, registry, recipe
        self._tasks: TaskGroup | None = None
        self._stopped = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Own them, until `stop`."""
        async with anyio.create_task_group() as self._tasks:
            task_status.started()
            await self._stopped.wait()
            self._tasks.cancel_scope.cancel()

    def stop(self) -> None:
        """End `run`; what is under way is broken off."""
        self._stopped.set()

    # -------------------------------------------------------------------------------------- operations

    async def load(self, table: dict[str, Any], beside: str = "") -> Operation:
        """One more worker: here, or in the process of the worker `beside`.

        Raises:
            InvalidRequest: For what is wrong with `table`, by key; elsewhere that is only told by the operation.
            NotFound: There is no worker `beside`.
        """
        if beside and beside not in self._crew.by_id:
            return self._load_elsewhere(table, beside)
        try:
            recipe = await anyio.to_thread.run_sync(self._recipe, table)
        except ConfigError as error:
            raise _in_json(error) from None
        operation = Operation(f"Load of {_named(recipe.table.names)} (backend {recipe.table.backend})")
        return self._begin(operation, lambda: self._crew.load(recipe, operation.add))

    def start(self, order: Literal["drain", "unload", "reload"], target: str) -> Operation:
        """Have this done to a worker, or to all workers of a model. They are reloaded one after the other.

        Raises:
            NotFound: There is neither a worker of this id nor a model of this name.
            InvalidRequest: Some worker of it is of another program.
        """
        found = self._find(target)
        elsewhere = [_elsewhere(worker) for worker in found if not self._is_ours(worker)]
        what = f"{order.capitalize()} of {_called(found)}"
        operation = Operation(what, found, self._newcomers(elsewhere) if order == "reload" else tuple)
        return self._begin(operation, lambda: self._all(operation, order))

    async def obey(self, wanted: Obey) -> None:
        """What another process of the cluster asks for, of a worker of ours. Raises `ServeError`."""
        worker = self._crew.member(wanted.worker).worker
        match wanted.order:
            case "alias" | "unalias" as order:
                await self._rename(worker, order, wanted.name)
                return
            case "load":
                operation = await self.load(wanted.table or {})
            case order:
                operation = self.start(order, wanted.worker)
        await operation.over.wait()
        if operation.error is not None:
            raise operation.error

    async def alias(self, name: str, model: str) -> tuple[Worker, ...]:
        """Have `name` mean `model`, and nothing else. Returns the workers that are called so.

        Raises:
            ModelNotFound: There is no such model.
            InvalidRequest: Some worker has `name` by its config.
        """
        workers = self._registry.serving(model)
        if not workers:
            raise ModelNotFound(model, "/cluster/workers")
        others = [worker for worker in self._registry.serving(name) if worker not in workers]
        renamed = [worker for worker in workers if name not in worker.names]
        for worker in renamed:
            await self._rename(worker, "alias", name)
        try:
            for worker in others:
                await self._rename(worker, "unalias", name)
        except ServeError:
            for worker in renamed:
                await self._rename(worker, "unalias", name)
            raise
        return workers

    async def unalias(self, name: str) -> None:
        """Have nobody called `name` any more. Raises as `alias` does."""
        workers = self._registry.serving(name)
        if not workers:
            raise ModelNotFound(name, "/cluster/workers")
        for worker in workers:
            await self._rename(worker, "unalias", name)

    def gone(self, worker: Worker) -> bool:
        """It is not listed any more."""
        return all(listed is not worker for listed in self._registry.workers)

    # -------------------------------------------------------------------------------------------------

    def _load_elsewhere(self, table: dict[str, Any], beside: str) -> Operation:
        neighbour = _elsewhere(self._find(beside)[0])
        what = f"Load beside worker {beside} at {neighbour.address}"
        operation = Operation(what, more=self._newcomers([neighbour]))
        return self._begin(operation, lambda: neighbour.obey("load", table=table))

    def _newcomers(self, neighbours: Sequence[RemoteWorker]) -> Callable[[], list[Worker]]:
        """Calls for those that come to their processes from now on; these say so before they say that it is done."""
        known = {worker.id for worker in self._registry.workers}
        besides = [neighbour.beside() for neighbour in neighbours]  # which may be gone by then

        def newcomers() -> list[Worker]:
            listed = [worker for worker in self._registry.workers if worker.id not in known]
            return [worker for worker in listed if any(beside(worker) for beside in besides)]

        return newcomers

    def _find(self, target: str) -> list[Worker]:
        named = [worker for worker in self._registry.workers if worker.id == target]
        found = named or list(self._registry.serving(target))
        if not found:
            raise NotFound(f"There is neither a worker nor a model {target!r} here.", param="worker")
        return found

    def _begin(self, operation: Operation, work: Callable[[], Awaitable[None]]) -> Operation:
        assert self._tasks is not None, "nothing can be done yet"
        logger.info("%s begins: an operator wants it.", operation.what)
        self._tasks.start_soon(self._do, operation, work)
        return operation

    async def _do(self, operation: Operation, work: Callable[[], Awaitable[None]]) -> None:
        operation.error = shutting_down()
        try:
            operation.error = await _failure(work)
        finally:
            operation.over.set()
            self._tell_end(operation)
        if operation.error is not None:  # what failed to load is held by what it failed with
            await anyio.lowlevel.checkpoint()  # and that by what has brought it here, until the loop turns
            collect_garbage()

    def _tell_end(self, operation: Operation) -> None:
        if operation.error is not None:
            logger.error("%s failed: %s", operation.what, " ".join(str(operation.error).split()))
            return
        left = [worker for worker in operation.workers if not self.gone(worker)]
        logger.info("%s is done%s.", operation.what, f": there is {_called(left)}" if left else "")

    async def _all(self, operation: Operation, order: Literal["drain", "unload", "reload"]) -> None:
        workers = tuple(operation.workers)
        if order == "reload":
            for worker in workers:
                await self._one(operation, worker, order)
            return
        failures: list[ServeError] = []

        async def one(worker: Worker) -> None:
            failure = await _failure(lambda: self._one(operation, worker, order))
            failures.extend([failure] if failure is not None else [])

        async with anyio.create_task_group() as tasks:
            for worker in workers:
                tasks.start_soon(one, worker)
        if failures:
            raise failures[0]

    async def _one(self, operation: Operation, worker: Worker, order: Literal["drain", "unload", "reload"]) -> None:
        if not self._is_ours(worker):
            await _elsewhere(worker).obey(order)
        elif order == "drain":
            await self._crew.remove(worker.id)
        elif order == "unload":
            await self._crew.unload(worker.id)
        else:
            await self._crew.reload(worker.id, operation.add)

    async def _rename(self, worker: Worker, order: Literal["alias", "unalias"], name: str) -> None:
        if not self._is_ours(worker):
            await _elsewhere(worker).obey(order, name)
        elif order == "alias":
            self._crew.rename(worker.id, add=name)
        else:
            self._crew.rename(worker.id, drop=name)
        said = "Worker %s is called %r as well." if order == "alias" else "Worker %s is not called %r any more."
        logger.info(said, worker.id, name)

    def _is_ours(self, worker: Worker) -> bool:
        return worker.id in self._crew.by_id


def _named(names: Iterable[str]) -> str:
    """In one line, whatever names others have thought of."""
    return " ".join(", ".join(names).split())


def _called(workers: Iterable[Worker]) -> str:
    return ", ".join(f"worker {worker.id} ({_named(worker.names)})" for worker in workers)


def _elsewhere(worker: Worker) -> RemoteWorker:
    from fastchat_serve.worker.remote import RemoteWorker  # most servers start without it, and sooner

    if not isinstance(worker, RemoteWorker):
        raise InvalidRequest(f"Worker {worker.id!r} is of another program; it is managed there.", param="worker")
    return worker


async def _failure(work: Callable[[], Awaitable[None]]) -> ServeError | None:
    """What goes wrong with `work`, for the operator; None if nothing does."""
    try:
        await work()
    except ServeError as error:
        return error
    except StartupError as error:
        said = " ".join([str(error), *getattr(error, "__notes__", ())])
        return EngineError(said, code="load_failed")
    except Exception as error:  # the boundary to foreign code: the operator is told, and the process goes on
        logger.exception("An operation failed.")
        return EngineError(f"It failed unexpectedly: {type(error).__name__}. The log says why.", code="load_failed")
    return None


def _in_json(error: ConfigError) -> InvalidRequest:
    """In the words of somebody who has sent the table alone: without the ``worker.N.`` before the key."""
    key = ".".join((error.key or "").split(".")[2:])
    return InvalidRequest(": ".join(filter(None, [key, error.problem])), param=key or None)
