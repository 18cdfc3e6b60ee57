"""What workers have in common: a state, who is told of changes, and that most of them are there from the start."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

from fastchat_serve.worker.base import LoadProgress, WorkerState

__all__ = ["Watched", "new_id", "nobody"]

_NOT_IN_IDS = re.compile(r"[^\w.-]+", re.ASCII)


def new_id(name: str) -> str:
    """For a worker of this model; it can stand in a path."""
    return f"{_NOT_IN_IDS.sub('-', name)}-{uuid.uuid4().hex[:8]}"


def nobody() -> None:
    """Is told."""


class Watched:
    """See the module, and `base.Worker`."""

    on_change: Callable[[], object] = staticmethod(nobody)
    _state = WorkerState.LOADING

    @property
    def state(self) -> WorkerState:
        return self._state

    @state.setter
    def state(self, state: WorkerState) -> None:
        self._state = state
        self.on_change()

    @property
    def node(self) -> str:
        return ""

    @property
    def address(self) -> str:
        return ""

    @property
    def wakes(self) -> bool:
        return False

    @property
    def progress(self) -> LoadProgress:
        return LoadProgress()

    async def wake(self) -> None:
        """It is not loaded on demand."""
