"""Who is listed by this controller: nodes that dial in, are what they say, and can be dialled where they say.

A node's address is proved by calling it back before anybody is sent there. Whatever is wrong is told to the node, which
logs it, and logged here; it dials again until it is right.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus

from fastchat_serve import __version__
from fastchat_serve.controller.fleet import Fleet, NodeLink
from fastchat_serve.controller.table import Table
from fastchat_serve.engine import CONTRACT
from fastchat_serve.protocol.link import Callers, FromCaller, FromHost, Hello, Rejected, Welcome
from fastchat_serve.protocol.watch import NodeCard
from fastchat_serve.worker.complaints import Complaints
from fastchat_serve.worker.dial import CALL, Credentials, DialError, dial
from fastchat_serve.worker.link import Link

__all__ = ["PROOF_S", "Admission", "contract_problem"]

PROOF_S: Final = 2.0
"""How long a node may take to say who it is when it is called back."""

_PROOFS: Final = 64
"""At a time."""

_ADVICE: Final = (
    "Other processes have to reach it there: check server.host and server.port of this process, set worker.advertise "
    'to an address that leads to it, or have it dial them with worker.reach = "out".'
)


class Admission:
    """See the module. ``await tasks.start(admission.run)``, then nodes can come in.

    Args:
        table: Where nodes are listed; None: this process is no controller, and lets in who needs no listing.
        credentials: For calling back.
    """

    def __init__(self, fleet: Fleet, table: Table | None, credentials: Credentials) -> None:
        self._fleet, self._table, self._credentials = fleet, table, credentials
        self._complaints = Complaints()
        self._callers: tuple[str, ...] = ()
        self._dialling: dict[str, NodeLink] = {}
        """Those that want to know of the callers, by node."""
        self._tasks: TaskGroup | None = None
        fleet.on_left.append(self._forget)
        if table is not None:
            fleet.on_left.append(table.remove)

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Let nodes in until cancelled."""
        self._proofs = anyio.CapacityLimiter(_PROOFS)
        async with anyio.create_task_group() as self._tasks:
            task_status.started()
            await anyio.sleep_forever()

    def accept(self) -> Link[FromCaller, FromHost]:
        """The protocol of a connection that a node has dialled."""
        return NodeLink(self._fleet, self._hear).link

    def name_callers(self, urls: Iterable[str]) -> None:
        """Who else wants to call nodes that cannot be dialled."""
        self._callers = tuple(urls)
        for link in self._dialling.values():
            link.link.send(Callers(self._callers))

    # -------------------------------------------------------------------------------------------------

    def _hear(self, link: NodeLink, hello: Hello) -> None:
        assert self._tasks is not None, "nobody is let in yet"
        self._tasks.start_soon(self._consider, link, hello)

    async def _consider(self, link: NodeLink, hello: Hello) -> None:
        refusal = self._at_once(link, hello)
        if refusal is None and hello.address and self._table is not None:
            async with self._proofs:
                if link.link.open:
                    refusal = await self._proof(hello) or self._at_once(link, hello)  # others came in meanwhile
        if not link.link.open:
            return
        if refusal is not None:
            link.link.send(refusal)
            link.link.close(refusal.reason)
            if not refusal.again:
                self._complaints.say(f"A node at {link.link.peer_host} is not listed", refusal.reason)
            return
        self._let_in(link, hello)

    def _let_in(self, link: NodeLink, hello: Hello) -> None:
        if self._table is not None:
            before = self._table.at(hello.address) if hello.address else None
            if before is not None and before != hello.node:  # it is known who lives there now
                self._fleet.forget(before)
            self._table.add(NodeCard(hello.node, hello.address))
        self._fleet.admit(link, hello.address or link.link.peer_host)
        if hello.address:
            link.link.send(Welcome())
        else:
            self._dialling[hello.node] = link
            link.link.send(Welcome(self._callers))

    def _forget(self, node: str) -> None:
        self._dialling.pop(node, None)

    def _at_once(self, link: NodeLink, hello: Hello) -> Rejected | None:
        """What can be said against it without asking anybody."""
        if problem := contract_problem(hello):
            return Rejected(problem)
        listed = self._fleet.get(hello.node)
        if listed is not None and listed.well:
            return Rejected("it is listed already, over another link", again=True)
        if listed is not None and listed.hello is not None and hello.incarnation <= listed.hello.incarnation:
            return Rejected("this link is older than one that came before it", again=True)
        if hello.address and _is_loopback(hello.address) and not _is_loopback_host(link.link.peer_host):
            return Rejected(
                f"its address {hello.address} leads every other host to itself, but it comes from "
                f"{link.link.peer_host}. {_ADVICE}"
            )
        return None

    async def _proof(self, hello: Hello) -> Rejected | None:
        """Call it back: who answers has to be the same process."""
        said: list[Hello] = []
        answered = anyio.Event()

        def hear(link: NodeLink, answer: Hello) -> None:
            said.append(answer)
            answered.set()

        back = NodeLink(self._fleet, hear)
        try:
            await dial(hello.address, CALL, lambda: back.link, self._credentials)
            with anyio.move_on_after(PROOF_S):
                await answered.wait()
        except DialError as error:
            return Rejected(f"its address {hello.address} was called back in vain: {error}. {_ADVICE}")
        finally:
            back.link.abort("it was only to be proved who answers")
        if not said:
            return Rejected(f"its address {hello.address} was called back, and nobody said who it is. {_ADVICE}")
        if said[0].node != hello.node:
            return Rejected(f"at its address {hello.address} another process answers. {_ADVICE}")
        return None


def contract_problem(hello: Hello) -> str:
    """Why a node's engines cannot be called from here; empty if they can."""
    if hello.contract == CONTRACT:
        return ""
    return (
        f"its engines speak version {hello.contract} of the contract (fastchat-serve {hello.version}), and here it is "
        f"version {CONTRACT} (fastchat-serve {__version__}): install the same version on both sides"
    )


@lru_cache(maxsize=4096)
def _is_loopback(url: str) -> bool:
    try:
        return _is_loopback_host(urlsplit(url).hostname or "")
    except ValueError:  # it is no URL, and cannot be dialled either
        return False


@lru_cache(maxsize=4096)
def _is_loopback_host(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
