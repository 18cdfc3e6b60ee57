"""Which workers there are, and which models they serve.

It holds `Worker`s, local or remote alike, and decides nothing. What it last saw of each it keeps, so that those that
can take a request are found without a look at all of them (`members.py`, `served.py`, `pools.py`): a worker tells that
something changed, and `look` sees what. The adapters of a worker's engine are models, too.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Final

from msgspec import Struct

from fastchat_serve.controller.members import Member, Seen
from fastchat_serve.controller.served import Served
from fastchat_serve.errors import ModelNotFound, ServeError, Unavailable
from fastchat_serve.worker.base import Worker, WorkerState
from fastchat_serve.worker.watched import nobody

__all__ = ["Registry"]

_MOST_REMEMBERED: Final = 8192
"""Changes, for `as_seen`: two for each decision that is remembered. More would not fit into a core's own cache, and
each would cost a miss."""

_EXPECTED_S: Final = 60.0
"""So long after its last worker has left a model counts as one that comes back: workers are started anew."""


class _Change(Struct, frozen=True, gc=False):
    """One that was seen of a worker."""

    worker: str
    models: tuple[str, ...]
    """That it was listed for."""
    before: Seen | None
    """How it was seen until then; None: not at all."""


class Registry:
    """Workers by id and by the names of the models they serve.

    Args:
        clock: Monotonic time in seconds.

    Attributes:
        changes: How many were seen of all workers so far.
        is_learning: Whether there may be workers that are to be listed in a moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.changes = 0
        self.is_learning: Callable[[], bool] = _knows_all
        self._members: dict[str, Member] = {}
        self._served: dict[str, Served] = {}
        self._since: dict[str, int] = {}
        self._left_at: dict[str, float] = {}
        self._positions = 0
        self._changed: dict[Member, None] = {}  # in order, so that the same happens whenever the same happened
        self._past: deque[_Change] = deque(maxlen=_MOST_REMEMBERED)

    def add(self, worker: Worker) -> None:
        """List `worker` under all its names; one with the same id is replaced.

        Again once it is ready: only then are its adapters known.
        """
        member = self._members.get(worker.id)
        if member is None:
            member = self._new_member(worker, self._positions)
            self._positions += 1
        elif member.worker is not worker:
            self._unlist(member)
            member = self._new_member(worker, member.position)
        self._list(member)

    def remove(self, worker_id: str, *, for_good: bool = False) -> None:
        """Forget a worker; unknown ids are passed over. `for_good`: it was unloaded, and is not one that comes back."""
        member = self._members.pop(worker_id, None)
        if member is not None:
            names = member.names
            self._unlist(member)
            left_at = -math.inf if for_good else self._clock()
            self._left_at.update((name, left_at) for name in names if name not in self._served)

    @property
    def workers(self) -> tuple[Worker, ...]:
        return tuple(member.worker for member in self._members.values())

    @property
    def models(self) -> tuple[str, ...]:
        """Names of all models, sorted."""
        return tuple(sorted(self._served))

    def serving(self, model: str) -> tuple[Worker, ...]:
        """The workers of a model, in whatever state; empty if none is listed for it."""
        served = self._served.get(model)
        return () if served is None else served.workers

    def missing(self, model: str) -> ServeError:
        """Why nobody serves a model that is not listed: whoever asks again may be answered, or not."""
        left_at = self._left_at.get(model)
        if left_at is not None and self._clock() - left_at < _EXPECTED_S:
            return Unavailable(
                f"Model {model!r} cannot be served now (its last worker has left). Try again later.",
                retry_after_s=1.0,
            )
        if self.is_learning():
            return Unavailable("Which models there are is not known yet. Try again in a moment.", retry_after_s=1.0)
        return ModelNotFound(model)

    def since(self, model: str) -> int:
        """When the model was first listed: Unix time in seconds."""
        return self._since[model]

    @property
    def ready(self) -> bool:
        """Every model has a worker that takes requests, or that is loaded for the first that comes."""
        return bool(self._served) and all(
            any(worker.state is WorkerState.READY or worker.wakes for worker in served.workers)
            for served in self._served.values()
        )

    # ---------------------------------------------------------------------------- what is seen of workers

    def seen(self, model: str) -> Served | None:
        """A model, as its workers were when they were looked at last; None if none is listed for it."""
        return self._served.get(model)

    def look(self, model: str) -> Served | None:
        """A model, as its workers are now by what they have told; None if none is listed for it."""
        if self._changed:
            changed = tuple(self._changed)
            self._changed.clear()
            for member in changed:
                self.look_at(member)
        return self._served.get(model)

    def look_at(self, member: Member) -> bool:
        """See what a worker is now. Whether that is news."""
        before, seen = member.seen, member.look()
        if seen == before or not member.names:  # in the latter case it is not listed any more
            return False
        self._remember(member, before)
        served = [self._served[name] for name in member.names]
        if seen.kind is not before.kind or seen.speed != before.speed:  # hardly ever
            for each in served:
                each.leave(member)
            member.seen = seen
            for each in served:
                each.join(member)
        elif seen.full == before.full:  # nearly always
            member.seen = seen
            for each in served:
                for pool in each.pools.values():
                    if seen.kind in pool.kinds:
                        pool.standing(seen).change(member, before)
        else:
            pools = [pool for each in served for pool in each.pools.values() if seen.kind in pool.kinds]
            for pool in pools:
                pool.standing(before).remove(member)
            member.seen = seen
            for pool in pools:
                pool.standing(seen).add(member)
        return True

    def as_seen(self, model: str, changes: int) -> list[tuple[str, Seen]] | None:
        """The workers of a model by id, as they were seen when there had been so many `changes`.

        None if that is too long ago.
        """
        back = self.changes - changes
        if back > len(self._past):
            return None
        seen: dict[str, Seen | None] = {member.id: member.seen for member in self._members_of(model)}
        for change in islice(reversed(self._past), back):
            if model in change.models:
                seen[change.worker] = change.before
        return [(id_, each) for id_, each in seen.items() if each is not None]

    # -------------------------------------------------------------------------------------------------

    def _new_member(self, worker: Worker, position: int) -> Member:
        member = self._members[worker.id] = Member(worker, position)
        member.changed = worker.on_change = partial(self._changed.setdefault, member, None)
        return member

    def _list(self, member: Member) -> None:
        """Under all names that its worker has now."""
        names, is_new = tuple(dict.fromkeys(member.worker.names + member.worker.adapters)), not member.names
        self._drop(member, (name for name in member.names if name not in names))
        for name in names:
            if name not in member.names:
                self._since.setdefault(name, int(time.time()))
                self._served.setdefault(name, Served()).add(member)
        member.names = names
        if is_new:
            self._remember(member, None)
        member.changed()

    def _unlist(self, member: Member) -> None:
        self._remember(member, member.seen)
        self._drop(member, member.names)
        member.names = ()
        member.changed = member.worker.on_change = nobody
        self._changed.pop(member, None)

    def _drop(self, member: Member, names: Iterable[str]) -> None:
        for name in names:
            served = self._served[name]
            served.remove(member)
            if not served.members:
                del self._served[name]

    def _members_of(self, model: str) -> list[Member]:
        served = self._served.get(model)
        return [] if served is None else served.members

    def _remember(self, member: Member, before: Seen | None) -> None:
        self._past.append(_Change(member.id, member.names, before))
        self.changes += 1


def _knows_all() -> bool:
    return False
