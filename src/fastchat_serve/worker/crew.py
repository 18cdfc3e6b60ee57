"""The workers of this process, which come and go while it runs.

Those of the config are there when it starts, or it does not start. Later ones are loaded, drained, unloaded and
reloaded one by one; whatever goes wrong with one of them, the others go on, and nothing of it is left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus
from msgspec import Struct

from fastchat_serve.config import Worker as WorkerTable
from fastchat_serve.errors import InvalidRequest, NotFound, StartupError, Unavailable, shutting_down
from fastchat_serve.worker.base import OwnWorker, WorkerState
from fastchat_serve.worker.memory import collect_garbage
from fastchat_serve.worker.on_demand import OnDemandWorker

__all__ = ["Crew", "Recipe"]

logger = logging.getLogger(__name__)


class Recipe(Struct, frozen=True):
    """How to make one worker, as often as it is wanted."""

    table: WorkerTable
    make: Callable[[], OwnWorker]
    """It does not run yet. Raises `StartupError`."""


class Crew:
    """See the module.

    Args:
        on_come: Called with a worker that is there, or calls itself otherwise than before.
        on_go: Called with the id of one that is there no more.
        grace_s: How long accepted work has to finish when a worker is told to go.
    """

    def __init__(
        self, *, on_come: Callable[[OwnWorker], object], on_go: Callable[[str], object], grace_s: float
    ) -> None:
        self._on_come, self._on_go, self._grace_s = on_come, on_go, grace_s
        self._members: dict[str, _Member] = {}
        self._workers: dict[str, OwnWorker] = {}
        self._tasks: TaskGroup | None = None
        self._refusing = False

    @property
    def workers(self) -> tuple[OwnWorker, ...]:
        return tuple(self._workers.values())

    @property
    def by_id(self) -> Mapping[str, OwnWorker]:
        """Always as it is now."""
        return MappingProxyType(self._workers)

    def add(self, recipe: Recipe) -> None:
        """Before `open`. Raises what making it raises."""
        self._put(_Member(recipe, recipe.make()))

    # ------------------------------------------------------------------------------- the process's life

    async def open(self, tasks: TaskGroup) -> None:
        """Open all workers, side by side, to run in `tasks`. Raises if one cannot be."""
        self._tasks = tasks
        async with anyio.create_task_group() as opening:
            for member in self._members.values():
                self._on_come(member.worker)
                opening.start_soon(self._start, member)

    def refuse(self) -> None:
        """Take no new work, and no new workers."""
        self._refusing = True
        for worker in self.workers:
            worker.refuse()

    def stop(self) -> None:
        """End them all."""
        self._refusing = True
        for member in self._members.values():
            member.stop()

    # --------------------------------------------------------------------------------- one worker's life

    async def load(self, recipe: Recipe, made: Callable[[OwnWorker], object] = lambda worker: None) -> None:
        """One more worker; returns once it takes requests.

        Args:
            made: Called with it before it is loaded.

        Raises:
            StartupError: It cannot be; nothing of it is left.
            Unavailable: The process is about to end.
        """
        member = await self._make(recipe)
        made(member.worker)
        await self._begin(member)

    async def remove(self, worker_id: str) -> None:
        """Let a worker go: it takes no new work, finishes what it has accepted, and is unloaded.

        What is not done in time ends with an error. Raises as `member` does.
        """
        with self.member(worker_id) as member:
            await self._end(member)

    async def unload(self, worker_id: str) -> None:
        """Free what its engine takes: as `remove`; but one that is loaded on demand stays, and is loaded again."""
        with self.member(worker_id) as member:
            if not isinstance(member.worker, OnDemandWorker):
                await self._end(member)
                return
            with anyio.move_on_after(self._grace_s) as grace:
                await member.worker.unload()
            if grace.cancelled_caught:
                member.worker.expel(_unloading())
                await member.worker.unload()

    async def reload(self, worker_id: str, made: Callable[[OwnWorker], object] = lambda worker: None) -> None:
        """Put a fresh worker in a worker's place, under its names. Raises as `load` and `member` do.

        Its model is known all the time, and served again once it is loaded: memory may not suffice for both at once.
        """
        with self.member(worker_id) as before:
            member = await self._make(before.recipe)
            member.worker.names = before.worker.names
            made(member.worker)
            self._on_come(member.worker)
            await self._end(before)
            await self._begin(member)

    def rename(self, worker_id: str, *, add: str = "", drop: str = "") -> None:
        """Give a worker one more name, or take one away that it was given so. Raises `InvalidRequest`, `NotFound`."""
        with self.member(worker_id) as member:
            worker = member.worker
            if drop in member.recipe.table.names:
                raise InvalidRequest(f"{drop!r} is the worker's own name, not an alias.", param="name")
            if add in worker.adapters:
                raise InvalidRequest(f"{add!r} is the name of an adapter of this worker.", param="name")
            names = [name for name in worker.names if name != drop]
            worker.names = tuple(names if not add or add in names else [*names, add])
            self._on_come(worker)

    def member(self, worker_id: str) -> _Member:
        """To be entered by whoever changes something about it.

        Raises:
            NotFound: There is none here of this id.
            InvalidRequest: Somebody else is at it.
        """
        member = self._members.get(worker_id)
        if member is None:
            raise NotFound(f"There is no worker {worker_id!r} here.", param="worker")
        return member

    # -------------------------------------------------------------------------------------------------

    async def _make(self, recipe: Recipe) -> _Member:
        if self._refusing:
            raise shutting_down()
        member = _Member(recipe, await anyio.to_thread.run_sync(recipe.make))
        if self._refusing:
            raise shutting_down()
        self._put(member)
        return member

    def _put(self, member: _Member) -> None:
        worker = member.worker
        self._members[worker.id] = member
        self._workers[worker.id] = worker
        if isinstance(worker, OnDemandWorker):
            worker.on_load = partial(self._on_come, worker)

    async def _begin(self, member: _Member) -> None:
        """Open it, or leave nothing of it."""
        self._on_come(member.worker)
        try:
            await self._start(member)
        except BaseException:
            self._forget(member)
            raise

    async def _start(self, member: _Member) -> None:
        assert self._tasks is not None, "the crew is not open"
        await self._tasks.start(self._keep, member)
        self._on_come(member.worker)  # again, with its adapters

    async def _keep(self, member: _Member, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Run one worker; if it breaks once it was up, the others go on."""
        worker, started = member.worker, _Started(task_status)
        try:
            with anyio.CancelScope() as member.life:
                await worker.run(task_status=started)
            if not started.done:
                raise StartupError(f"Worker {worker.names[0]!r} was told to go before it was loaded.")
        except StartupError:
            raise
        except Exception as error:  # the boundary to foreign code
            if not started.done:
                what = f"Worker {worker.names[0]!r} (backend {member.recipe.table.backend!r})"
                raise StartupError(f"{what} could not start: {type(error).__name__}: {error}") from error
            logger.exception("Worker %s broke.", worker.id)
        finally:
            member.ended.set()

    async def _end(self, member: _Member) -> None:
        worker = member.worker
        with anyio.move_on_after(self._grace_s) as grace:
            await worker.drain()
        if grace.cancelled_caught:
            worker.expel(_unloading())
        member.stop()
        await member.ended.wait()
        self._forget(member)

    def _forget(self, member: _Member) -> None:
        worker_id = member.worker.id
        if self._members.pop(worker_id, None) is not None:
            del self._workers[worker_id]
            self._on_go(worker_id)
        if member.recipe.table.placement == "loop":
            collect_garbage()


class _Member:
    """One worker, and its life."""

    def __init__(self, recipe: Recipe, worker: OwnWorker) -> None:
        self.recipe, self.worker = recipe, worker
        self.life: anyio.CancelScope | None = None
        self.ended = anyio.Event()
        self._is_busy = False

    def __enter__(self) -> _Member:
        if self._is_busy:
            raise InvalidRequest("This worker is being loaded, unloaded or reloaded already.", param="worker")
        self._is_busy = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_busy = False

    def stop(self) -> None:
        """End its life; what it still loads is given up."""
        if self.worker.state is WorkerState.LOADING and self.life is not None:
            self.life.cancel()
        self.worker.stop()


class _Started(TaskStatus[None]):
    """Passes "started" on, and remembers it."""

    def __init__(self, status: TaskStatus[None]) -> None:
        self._status = status
        self.done = False

    def started(self, value: None = None) -> None:
        self.done = True
        self._status.started(value)


def _unloading() -> Unavailable:
    return Unavailable("This worker is being unloaded.", retry_after_s=1.0)
