"""Those that watch this controller's table: they are told of it, and where they are is told to nodes that dial."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from fastchat_serve.controller.fleet import LEASE_S
from fastchat_serve.controller.table import Table
from fastchat_serve.protocol.frames import LinkBroken
from fastchat_serve.protocol.watch import Choosing, FromController, FromWatcher, Joined, Left, Watch
from fastchat_serve.worker.link import Link

__all__ = ["Watchers"]


class Watchers:
    """See the module.

    Args:
        choosing: What they are told of policies.
        name_callers: Told where all watchers can be dialled, whenever that changes.
    """

    def __init__(self, table: Table, choosing: Choosing, name_callers: Callable[[Iterable[str]], None]) -> None:
        self._table, self._choosing, self._name_callers = table, choosing, name_callers
        self._ends: dict[_End, str] = {}

    def accept(self) -> Link[FromController, FromWatcher]:
        """The protocol of a connection that a watcher has dialled."""
        return _End(self, self._table, self._choosing).link

    @property
    def links(self) -> tuple[Link[FromController, FromWatcher], ...]:
        return tuple(end.link for end in self._ends)

    def add(self, end: _End, address: str) -> None:
        self._ends[end] = address
        self._name_callers(dict.fromkeys(filter(None, self._ends.values())))

    def discard(self, end: _End) -> None:
        if self._ends.pop(end, None) is not None:
            self._name_callers(dict.fromkeys(filter(None, self._ends.values())))


class _End:
    """The link to one watcher. A `LinkEnd`."""

    def __init__(self, watchers: Watchers, table: Table, choosing: Choosing) -> None:
        self._watchers, self._table, self._choosing = watchers, table, choosing
        self.link: Link[FromController, FromWatcher] = Link(list[FromWatcher], self)
        self._is_watching = False
        self._patience: asyncio.TimerHandle | None = None
        """While it is silent."""

    def opened(self) -> None:
        """The watcher speaks first."""

    def receive(self, messages: Sequence[FromWatcher]) -> None:
        for message in messages:
            if not isinstance(message, Watch) or self._is_watching:
                raise LinkBroken(f"nothing can be done here with a message {type(message).__name__}")
            self._is_watching = True
            self._watchers.add(self, message.address or self._seen_at(message))
            self.link.send(self._choosing)
            self.link.send(self._table.watch(self._tell))

    def silent(self) -> None:
        """What is new piles up for it, and nodes that dial out look for it: not for longer than a node's lease."""
        self._patience = asyncio.get_running_loop().call_later(LEASE_S, self.link.abort, "it is silent")

    def heard(self) -> None:
        self._end_patience()

    def closed(self, reason: str) -> None:
        self._end_patience()
        self._table.unwatch(self._tell)
        self._watchers.discard(self)

    def _end_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()

    def _tell(self, change: Joined | Left) -> None:
        self.link.send(change)

    def _seen_at(self, said: Watch) -> str:
        host = self.link.peer_host
        if not (host and said.port):
            return ""
        return f"{'https' if said.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{said.port}"
