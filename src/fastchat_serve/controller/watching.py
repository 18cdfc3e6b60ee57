"""An API process's live copy of its controllers' tables, and the links to the nodes that they list.

Dispatch is local: no controller is asked for a request. What is known stays known when a controller is gone; a node
is called as long as the link to it is well, whatever any controller says of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus

from fastchat_serve.controller.admission import PROOF_S, contract_problem
from fastchat_serve.controller.fleet import Fleet, NodeLink, node_label
from fastchat_serve.protocol.frames import LinkBroken
from fastchat_serve.protocol.link import Hello
from fastchat_serve.protocol.watch import Choosing, FromController, FromWatcher, Joined, Left, Listing, NodeCard, Watch
from fastchat_serve.worker.complaints import Complaints
from fastchat_serve.worker.dial import CALL, WATCH, Backoff, Credentials, DialError, dial
from fastchat_serve.worker.link import Link
from fastchat_serve.worker.names import Names

__all__ = ["LEARN_S", "Watching"]

logger = logging.getLogger(__name__)

LEARN_S: Final = 3.0
"""Within which nodes are heard of that are there."""


class Watching:
    """See the module.

    Args:
        fleet: Where nodes are let in.
        controllers: URLs.
        introduction: What we are to say of ourselves.
        credentials: For dialling.
        choose: Told how workers are to be picked.
        ours: The id of this process, if it is a node itself: it does not call itself.
    """

    def __init__(
        self,
        fleet: Fleet,
        controllers: Iterable[str],
        introduction: Callable[[], Watch],
        credentials: Credentials,
        choose: Callable[[Choosing], None],
        ours: str = "",
    ) -> None:
        self._fleet, self._introduction = fleet, introduction
        self._credentials, self._ours = credentials, ours
        self.choose = choose
        self._complaints = Complaints()
        self._names = Names(controllers, self._watch, self._complaints)
        self._listings: dict[tuple[str, str], dict[str, NodeCard]] = {}
        """By controller: its URL, and one address of its host."""
        self._missed: set[tuple[str, str]] = set()
        """Controllers that the log says are not heard."""
        self._dialled: dict[str, anyio.Event] = {}
        """By node: set when what is known of it has changed."""
        self._listed_at: float | None = None
        """When a controller was heard for the first time."""
        self._tasks: TaskGroup | None = None

    @property
    def is_learning(self) -> bool:
        """No controller was heard so far, or nodes are listed that are not known here yet, and may be in a moment."""
        if self._listed_at is None:
            return True
        if anyio.current_time() - self._listed_at > LEARN_S:
            return False
        listed = set[str]().union(*self._listings.values()) - {self._ours}
        return any(self._fleet.get(node) is None for node in listed)

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            await self._names.run(task_status=task_status)

    async def _watch(self, url: str, at: str) -> None:
        """Watch one controller for as long as its name leads there; what it listed last holds for as long."""
        backoff = Backoff()
        self._listings[url, at] = {}
        while self._names.leads_to(url, at):
            watcher = _Watcher(self, (url, at), self._introduction)
            try:
                await dial(url, WATCH, lambda watcher=watcher: watcher.link, self._credentials, at=at)  # type: ignore[misc]
            except DialError as error:
                self._miss((url, at), f"No controller at {url}", str(error))
            else:
                began = anyio.current_time()
                await watcher.link.wait_closed()
                if watcher.listed:
                    backoff.lasted(anyio.current_time() - began)
                self._miss((url, at), f"The controller at {url} is not heard any more", watcher.link.reason)
            await anyio.sleep(backoff.wait_s())
        self._missed.discard((url, at))
        for node in self._listings.pop((url, at)):
            self._look_at(node)

    def _miss(self, controller: tuple[str, str], about: str, problem: str) -> None:
        if self._complaints.say(about, problem):
            self._missed.add(controller)

    # -------------------------------------------------------------------------------- of one controller

    def listed(self, controller: tuple[str, str], cards: Iterable[NodeCard]) -> None:
        """What it lists, and nothing else."""
        self._complaints.forget(f"No controller at {controller[0]}")
        if controller in self._missed:
            self._missed.remove(controller)
            logger.info("The controller at %s is heard.", controller[0])
        if self._listed_at is None:
            self._listed_at = anyio.current_time()
        before = self._listings[controller]
        self._listings[controller] = {card.node: card for card in cards}
        for node in before.keys() | self._listings[controller].keys():
            self._look_at(node)

    def joined(self, controller: tuple[str, str], card: NodeCard) -> None:
        self._listings[controller][card.node] = card
        self._look_at(card.node)

    def left(self, controller: tuple[str, str], node: str) -> None:
        self._listings[controller].pop(node, None)
        self._look_at(node)

    # ------------------------------------------------------------------------------------- of one node

    def _look_at(self, node: str) -> None:
        if node in self._dialled:
            self._dialled[node].set()
        elif self._wanted(node) is not None:
            assert self._tasks is not None
            self._dialled[node] = anyio.Event()
            self._tasks.start_soon(self._call, node)

    def _wanted(self, node: str) -> tuple[str, str | None] | None:
        """Where a node is to be dialled: a URL, and one address of its host; None if it is not."""
        if node == self._ours:
            return None
        for (url, at), cards in self._listings.items():
            card = cards.get(node)
            if card is not None and card.here:
                return url, at
            if card is not None and card.address:
                return card.address, None
        return None

    async def _call(self, node: str) -> None:
        """Keep a link to it as long as anybody lists it."""
        backoff = Backoff()
        try:
            while (where := self._wanted(node)) is not None:
                self._dialled[node] = anyio.Event()
                link = self._fleet.get(node)
                if link is None or not link.well:
                    # A silent one is not waited for: if the way was cut, it may be long until TCP tries again there.
                    link = await self._dial(node, *where)
                if link is not None:
                    began = anyio.current_time()
                    await link.wait_unwell()
                    self._dialled[node] = anyio.Event()  # what was said of it while all was well is no news
                    backoff.lasted(anyio.current_time() - began)
                    self._complaints.forget(_about(node, where[0]))
                # Of one that said that it leaves, controllers are about to say so: there is nobody to dial.
                with anyio.move_on_after(Backoff.MOST_S if link is not None and link.leaving else backoff.wait_s()):
                    await self._dialled[node].wait()
        finally:
            del self._dialled[node]

    async def _dial(self, node: str, url: str, at: str | None) -> NodeLink | None:
        """A link to `node`, which was let in; None if there is none."""
        answered = anyio.Event()

        def hear(link: NodeLink, hello: Hello) -> None:
            answered.set()

        link = NodeLink(self._fleet, hear)
        try:
            await dial(url, CALL, lambda: link.link, self._credentials, at=at)
        except DialError as error:
            self._complain(node, url, str(error))
            return None
        with anyio.move_on_after(PROOF_S):
            await answered.wait()
        problem = _problem(node, url, link.hello)
        if problem:
            self._complain(node, url, problem)
            link.link.abort(problem)
            return None
        if (before := self._fleet.get(node)) is not None and before.well:
            link.link.abort("it is heard again over the link that there was")
            return before
        self._fleet.admit(link, url)
        return link

    def _complain(self, node: str, url: str, problem: str) -> None:
        told = self._complaints.say(_about(node, url), problem)
        if told and (link := self._fleet.get(node)) is not None:
            link.loss_told = True


def _about(node: str, url: str) -> str:
    return f"{node_label(node, url)} cannot be called"


def _problem(node: str, url: str, hello: Hello | None) -> str:
    if hello is None:
        return f"nobody at {url} says who it is"
    if hello.node != node:
        return f"at {url} answers another process than the one that was listed; the controller will hear of it"
    return contract_problem(hello)


class _Watcher:
    """The link to one controller. A `LinkEnd`."""

    def __init__(self, watching: Watching, controller: tuple[str, str], introduction: Callable[[], Watch]) -> None:
        self._watching, self._controller, self._introduction = watching, controller, introduction
        self.link: Link[FromWatcher, FromController] = Link(list[FromController], self)
        self.listed = False

    def opened(self) -> None:
        self.link.send(self._introduction())

    def receive(self, messages: Sequence[FromController]) -> None:
        for message in messages:
            match message:
                case Listing(nodes):
                    self.listed = True
                    self._watching.listed(self._controller, nodes)
                case Choosing():
                    self._watching.choose(message)
                case Joined(card):
                    self._watching.joined(self._controller, card)
                case Left(node):
                    self._watching.left(self._controller, node)
                case _:
                    raise LinkBroken(f"nothing can be done here with a message {type(message).__name__}")

    def silent(self) -> None:
        """Dial it anew: what is lost with the link is told again, and a way that was cut is found open sooner."""
        self.link.abort("it is silent")

    def heard(self) -> None:
        """There is no link any more that could be heard again."""

    def closed(self, reason: str) -> None:
        """It is dialled anew."""
