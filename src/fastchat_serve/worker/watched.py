"""A worker's state, and who is told that something about the worker has changed."""

from __future__ import annotations

from collections.abc import Callable

from fastchat_serve.worker.base import WorkerState

__all__ = ["Watched", "nobody"]


def nobody() -> None:
    """Is told."""


class Watched:
    """What workers have in common. See `base.Worker.on_change`."""

    on_change: Callable[[], object] = staticmethod(nobody)
    _state = WorkerState.LOADING

    @property
    def state(self) -> WorkerState:
        return self._state

    @state.setter
    def state(self, state: WorkerState) -> None:
        self._state = state
        self.on_change()
