"""What workers have in common: a state, who is told of changes, and that most of them are there from the start."""

from __future__ import annotations

from collections.abc import Callable

from fastchat_serve.worker.base import LoadProgress, WorkerState

__all__ = ["Watched", "nobody"]


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
    def wakes(self) -> bool:
        return False

    @property
    def progress(self) -> LoadProgress:
        return LoadProgress()

    async def wake(self) -> None:
        """It is not loaded on demand."""
