"""The workers of other processes, in the registry: they come with a link, and go a while after it.

A link to a node may have been dialled by either side; whoever makes it lets the node in once it is known to be what it
says (`admission.py`, `watching.py`). A node that is silent, or whose link has broken, is out of rotation at once, and
is forgotten if it has not come back within its lease; one that comes and goes is kept out for a while (`damping.py`).
Times are those of the event loop's clock, which is monotonic.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from fastchat_serve.controller.damping import MOST_S, Damping
from fastchat_serve.controller.registry import Registry
from fastchat_serve.errors import ServeError
from fastchat_serve.protocol.frames import LinkBroken
from fastchat_serve.protocol.link import FromCaller, FromHost, Gone, Hello, Leaving, Statement
from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.caller import Caller
from fastchat_serve.worker.complaints import Complaints
from fastchat_serve.worker.link import PING_S, Link
from fastchat_serve.worker.remote import RemoteWorker

__all__ = ["LEASE_S", "PINGS_PER_S", "Fleet", "NodeLink", "node_label"]

logger = logging.getLogger(__name__)

UNSTEADY: Final = "Its process comes and goes."
"""The reason of a worker that is kept out."""

LEASE_S: Final = 10.0
"""How long a node that is not heard stays listed; meanwhile nobody is sent to it."""

PINGS_PER_S: Final = 500
"""Of all links that nothing is asked for: with more nodes each is pinged less often."""

_LOOK_S: Final = 0.5

_LABEL_CHARS: Final = 300


def node_label(node: str, place: str) -> str:
    """A node as the log calls it: enough of its id to find it by, and where it is. Both are its own words: one line."""
    return " ".join(f"Node {node[:8]} at {place}".split())[:_LABEL_CHARS]


class Fleet:
    """See the module. ``await tasks.start(fleet.run)`` keeps the leases."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._links: dict[str, NodeLink] = {}
        """Of nodes that were let in, the newest of each."""
        self._hearing: dict[str, NodeLink] = {}
        """By worker, through which link it was heard of last."""
        self._damping, self._complaints = Damping(), Complaints()
        self._pace_s = PING_S
        self.ending = False
        """All links are about to be closed from here: that is nothing to complain of."""
        self.on_left: list[Callable[[str], None]] = []
        """Called with the id of every node that is forgotten."""

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Keep the leases until cancelled."""
        task_status.started()
        while True:
            await anyio.sleep(_LOOK_S)
            self.look()

    def look(self) -> None:
        """Forget who has been silent for longer than its lease, and rest links that have nothing to do."""
        now = asyncio.get_running_loop().time()
        self._set_pace()
        for link in list(self._links.values()):
            if link.lost_at is not None and now - link.lost_at > LEASE_S:
                logger.warning("%s is forgotten: it was not heard for %g s.", link.label, LEASE_S)
                self._forget(link)
                continue
            if link.kept_out and (now >= self._damping.until(link.place) or not self._can_be_spared(link)):
                logger.info("%s is used again.", link.label)
                link.let_back()
            link.rest(self._pace_s)
        self._damping.forget(now)

    def get(self, node: str) -> NodeLink | None:
        """The link to a node that was let in, alive or not."""
        return self._links.get(node)

    def admit(self, link: NodeLink, place: str = "") -> None:
        """Let a node in: its workers are in the registry from now on.

        Args:
            place: Where it is found, or at least seen: by that it is known again when it has lost its id.
        """
        previous = self._links.get(link.node)
        self._links[link.node] = link
        out_s = self._damping.until(place or link.node) - asyncio.get_running_loop().time()
        if out_s > 0:
            self._complaints.say(f"Node at {place}", f"it comes and goes, and is kept out for up to {MOST_S:g} s")
        link.admitted(place or link.node, keep_out=out_s > 0)
        if previous is None or previous.loss_told:
            logger.info("%s is listed%s.", link.label, "" if previous is None else " again")
        self._set_pace()
        link.rest(self._pace_s)
        if previous is not None:
            self._clear(previous)

    @property
    def links(self) -> tuple[Link[FromCaller, FromHost], ...]:
        return tuple(link.link for link in self._links.values())

    def expel(self, error: ServeError) -> None:
        """End everything that is under way elsewhere with `error`."""
        for link in self._links.values():
            for worker in link.workers.values():
                worker.expel(error)

    # ------------------------------------------------------------------------------- the links' side

    def list_worker(self, link: NodeLink, worker: RemoteWorker) -> None:
        """It is there, or calls itself otherwise than before."""
        self._hearing[worker.id] = link
        self._registry.add(worker)

    def unlist_worker(self, link: NodeLink, worker_id: str, *, for_good: bool = False) -> None:
        """Unless it is heard of through another link by now."""
        if self._hearing.get(worker_id) is link:
            del self._hearing[worker_id]
            self._registry.remove(worker_id, for_good=for_good)

    def miss(self, link: NodeLink, why: str) -> None:
        """Nothing is heard of it, or its link is gone: say so, unless that was to be expected."""
        if self._links.get(link.node) is link and not link.leaving and not self.ending:
            link.loss_told = self._complaints.say(f"{link.label} is lost", why)

    def lose(self, link: NodeLink) -> None:
        """Its link is gone: whoever said before that it was leaving is not waited for."""
        if not link.leaving:
            assert link.lost_at is not None
            self._damping.lost(link.place, link.lost_at, since=link.in_since)
        elif self._links.get(link.node) is link:
            logger.info("%s has left.", link.label)
            self._forget(link)

    def forget(self, node: str) -> None:
        """Do not wait for it any more; unknown ones are passed over."""
        if (link := self._links.get(node)) is not None:
            self._forget(link)

    def _can_be_spared(self, link: NodeLink) -> bool:
        """Others serve all that it serves."""
        names = {name for worker in link.workers.values() for name in worker.names}
        return all(any(worker.state is WorkerState.READY for worker in self._registry.serving(name)) for name in names)

    def _forget(self, link: NodeLink) -> None:
        del self._links[link.node]
        self._clear(link)
        for tell in self.on_left:
            tell(link.node)

    def _clear(self, link: NodeLink) -> None:
        for worker_id in list(link.workers):
            self.unlist_worker(link, worker_id)
        link.link.abort("it is not wanted any more")

    def _set_pace(self) -> None:
        """In steps, so that not everyone who comes or goes changes it for all."""
        wanted_s = max(PING_S, len(self._links) / PINGS_PER_S)
        if not self._pace_s / 2 < wanted_s < self._pace_s * 2:
            self._pace_s = wanted_s


class NodeLink:
    """A link to one node, from the end that calls. A `LinkEnd`; make the `Link` by `link`.

    Args:
        on_hello: Called with the node's own words about itself, the first that come.
    """

    def __init__(self, fleet: Fleet, on_hello: Callable[[NodeLink, Hello], None]) -> None:
        self._fleet, self._on_hello = fleet, on_hello
        self._caller = Caller(find=self._find, other=self._take)
        self.link: Link[FromCaller, FromHost] = Link(list[FromHost], self)
        self._caller.link = self.link
        self.hello: Hello | None = None
        self.workers: dict[str, RemoteWorker] = {}
        self.is_admitted = self.leaving = False
        self.place = ""
        self.kept_out = False
        """It came and went: for a while its workers are not in rotation."""
        self.in_since = 0.0
        """Since when they are, or would be."""
        self.lost_at: float | None = None
        """Since when nothing is heard, on the loop's clock; None if all is well."""
        self.loss_told = False
        """The log says that it is lost, and is to say when it is back."""
        self._trouble = anyio.Event()

    @property
    def node(self) -> str:
        return "" if self.hello is None else self.hello.node

    @property
    def label(self) -> str:
        return node_label(self.node, self.place)

    @property
    def well(self) -> bool:
        return self.lost_at is None and self.link.open

    async def wait_unwell(self) -> None:
        """Return when the node is not heard, or the link is gone."""
        await self._trouble.wait()

    def admitted(self, place: str, *, keep_out: bool) -> None:
        """For the fleet."""
        self.place, self.kept_out = place, keep_out
        self.in_since = asyncio.get_running_loop().time()
        self.is_admitted = True
        for worker in self.workers.values():
            if keep_out:
                worker.set_aside(UNSTEADY)
            self._fleet.list_worker(self, worker)

    def let_back(self) -> None:
        """For the fleet."""
        self.kept_out, self.in_since = False, asyncio.get_running_loop().time()
        if self.well:
            self._caller.heard()

    def rest(self, pace_s: float) -> None:
        """Ping at this pace while nothing is under way here."""
        if not self._caller.busy and self.well:
            self.link.pace(pace_s)

    def changed(self, worker: RemoteWorker) -> None:
        if self.is_admitted:
            self._fleet.list_worker(self, worker)

    # --------------------------------------------------------------------------------- the link's side

    def opened(self) -> None:
        """The node speaks first."""

    def receive(self, messages: Sequence[FromHost]) -> None:
        if self.hello is None and not isinstance(messages[0], Hello):
            raise LinkBroken("it does not say who it is")
        self._caller.receive(messages)

    def silent(self) -> None:
        if not self.is_admitted:
            self.link.abort("it is silent, and was not let in yet")
            return
        self._miss("nothing is heard of it")
        self._caller.silent()

    def heard(self) -> None:
        self.lost_at = None
        if self.loss_told:
            self.loss_told = False
            logger.info("%s is heard again.", self.label)
        self._trouble = anyio.Event()
        if not self.kept_out:
            self._caller.heard()

    def closed(self, reason: str) -> None:
        if self.lost_at is None:
            self._miss(reason)
        self._caller.closed(reason)
        if self.is_admitted:
            self._fleet.lose(self)

    # -------------------------------------------------------------------------------------------------

    def _miss(self, why: str) -> None:
        self.lost_at = asyncio.get_running_loop().time()
        self._trouble.set()
        self._fleet.miss(self, why)

    def _find(self, said: Statement) -> RemoteWorker:
        worker = self.workers[said.worker] = _NodesWorker(said, self)
        worker.attach(self._caller)
        return worker

    def _take(self, message: FromHost) -> None:
        match message:
            case Hello() if self.hello is None:
                self.hello = message
                self._on_hello(self, message)
            case Leaving():
                self.leaving = True
            case Gone(worker_id):
                self._caller.forget(worker_id)
                if self.workers.pop(worker_id, None) is not None:
                    self._fleet.unlist_worker(self, worker_id, for_good=True)
            case _:
                raise LinkBroken(f"nothing can be done here with a message {type(message).__name__}")


class _NodesWorker(RemoteWorker):
    """One worker of a node."""

    def __init__(self, said: Statement, link: NodeLink) -> None:
        super().__init__(said.worker, said.names, speed=said.speed)
        self._node_link = link
        self._listed_as: tuple[tuple[str, ...], ...] = ()

    @property
    def node(self) -> str:
        return self._node_link.node

    @property
    def address(self) -> str:
        return self._node_link.place

    def stated(self, said: Statement) -> None:
        super().stated(said)
        if self._node_link.kept_out:
            self.set_aside(UNSTEADY)
        self.names, self.speed = said.names, said.speed
        if (listed_as := (self.names, self.adapters)) != self._listed_as:
            self._listed_as = listed_as
            self._node_link.changed(self)

    def begun(self) -> None:
        super().begun()
        self._node_link.link.pace(PING_S)
