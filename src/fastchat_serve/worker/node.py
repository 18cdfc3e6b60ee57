"""A process with workers, as others of its cluster call it: the same workers over any number of links.

Each link has a `Host` of its own, whoever dialled. `heartbeat.py` dials controllers; what dials us is accepted
by the server (`cluster.py`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus

from fastchat_serve import __version__
from fastchat_serve.engine import CONTRACT
from fastchat_serve.protocol.link import Callers, FromCaller, FromHost, Hello, Leaving, Rejected, Welcome
from fastchat_serve.worker.base import Worker
from fastchat_serve.worker.host import Host, Manage
from fastchat_serve.worker.link import Link

__all__ = ["PATIENCE_S", "Hosting", "Node", "Notice"]

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 5.0
"""After so long a silent caller's link is given up, and what it asked for is aborted: its slots are wanted."""

_WATCH_S: Final = 1.0

Notice = Callers | Rejected | Welcome
"""What is said to a node, and not to one of its workers."""


class Node:
    """See the module. ``await tasks.start(node.run)``, then links can be made.

    Args:
        workers: Those of this process, by id. Which they are may change: `announce` says so.
        manage: Does what operators want of them.
    """

    def __init__(self, workers: Mapping[str, Worker], manage: Manage | None = None) -> None:
        self.id = uuid.uuid4().hex
        self._workers, self._manage = workers, manage
        self._incarnations = itertools.count(1)
        self._links: dict[Hosting, None] = {}  # in order, so that a simulation's seed is one run
        self._tasks: TaskGroup | None = None
        self._leaving = False

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Serve links until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            task_status.started()
            while True:
                await anyio.sleep(_WATCH_S)
                for hosting in list(self._links):
                    hosting.give_up_if_silent()

    def host(
        self,
        *,
        address: Callable[[str], str] = lambda local_host: "",
        on_notice: Callable[[Notice], None] = lambda notice: None,
        on_silent: Callable[[bool], None] = lambda is_silent: None,
        on_closed: Callable[[str], None] = lambda reason: None,
    ) -> Link[FromHost, FromCaller]:
        """One end of a new link, as its protocol.

        Args:
            address: Where the other end may tell others to dial us, given our own IP address on the way to it.
            on_notice: Told what it says to the node as such.
            on_silent: Told that nothing is heard of the other end, and that it is heard again.
            on_closed: Told, with the reason, when the link is gone.
        """
        assert self._tasks is not None, "the node is not running"
        host = Host(self._workers, self._tasks, self._manage)
        hosting = Hosting(self, host, address, on_notice, on_silent, on_closed)
        self._links[hosting] = None
        return hosting.link

    def hello(self, address: str) -> Hello:
        return Hello(self.id, next(self._incarnations), CONTRACT, __version__, address)

    def announce(self) -> None:
        """Tell every caller at once what has changed of the workers."""
        for hosting in list(self._links):
            hosting.announce()

    def leave(self) -> None:
        """Tell everybody that no new work is taken."""
        self._leaving = True
        self.announce()
        for hosting in list(self._links):
            hosting.link.send(Leaving())

    @property
    def leaving(self) -> bool:
        return self._leaving

    @property
    def links(self) -> tuple[Link[FromHost, FromCaller], ...]:
        return tuple(hosting.link for hosting in self._links)

    def forget(self, hosting: Hosting) -> None:
        self._links.pop(hosting, None)


class Hosting:
    """One link of a node. A `LinkEnd`: what concerns workers is the host's."""

    def __init__(
        self,
        node: Node,
        host: Host,
        address: Callable[[str], str],
        on_notice: Callable[[Notice], None],
        on_silent: Callable[[bool], None],
        on_closed: Callable[[str], None],
    ) -> None:
        self._node, self._address = node, address
        self._on_notice, self._on_silent, self._on_closed = on_notice, on_silent, on_closed
        self._host = host
        self.link = host.link = Link(list[FromCaller], self)
        self._silent_since: float | None = None

    def opened(self) -> None:
        self.link.send(self._node.hello(self._address(self.link.local_host)))
        if self._node.leaving:
            self.link.send(Leaving())
        self.announce()

    def announce(self) -> None:
        self._host.keep_announcing()

    def give_up_if_silent(self) -> None:
        if self._silent_since is not None and asyncio.get_running_loop().time() - self._silent_since > PATIENCE_S:
            self.link.abort("the other end is silent")

    def receive(self, messages: Sequence[FromCaller]) -> None:
        ours = [message for message in messages if isinstance(message, Notice)]
        for message in ours:
            self._on_notice(message)
        self._host.receive([message for message in messages if not isinstance(message, Notice)] if ours else messages)

    def silent(self) -> None:
        self._silent_since = asyncio.get_running_loop().time()
        self._on_silent(True)

    def heard(self) -> None:
        self._silent_since = None
        self._on_silent(False)

    def closed(self, reason: str) -> None:
        self._node.forget(self)
        self._host.closed(reason)
        self._on_closed(reason)
