"""All processes of FastChat's whose models are served here: those that registered, and those of the config."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Final

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus

from fastchat_serve.config import FastChat
from fastchat_serve.controller.registry import Registry
from fastchat_serve.errors import Forbidden, InvalidRequest, Overloaded, ServeError, shutting_down
from fastchat_serve.fastchat.addresses import Dial, Networks, permitted, resolved
from fastchat_serve.fastchat.peer import FastChatWorker, Peer
from fastchat_serve.protocol import fastchat as wire

__all__ = ["ForeignWorkers"]

logger = logging.getLogger(__name__)

MOST_PEERS: Final = 4096
REFRESH_S: Final = 6.0
"""At most, for a look at all of them side by side."""
FIND_EVERY_S: Final = 1.0
"""Between two searches for a process of the config."""


class ForeignWorkers:
    """See the module. ``await tasks.start(foreign.run)``; everything else is for while it runs."""

    def __init__(self, config: FastChat, registry: Registry) -> None:
        self._config, self._registry = config, registry
        self._networks = Networks(config.networks)
        self._peers: dict[str, Peer] = {}
        self._stopped = anyio.Event()
        self._tasks: TaskGroup | None = None

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Keep peers until `stop`."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for url in self._config.upstreams:
                tasks.start_soon(self._find, url)
            task_status.started()
            await self._stopped.wait()
            self._tasks = None
            tasks.cancel_scope.cancel()

    def stop(self) -> None:
        """End `run`. What is under way ends with an error."""
        self._stopped.set()

    # ----------------------------------------------------------------------------------- registration

    async def register(self, asked: wire.RegisterWorker, registered_by: str) -> None:
        """Take a worker in, in place of what was known by its address. It is listed once it answers.

        Raises:
            InvalidRequest, Forbidden: It gives an address that is none, or that may not be dialled.
            Overloaded, Unavailable: There are too many, or none are taken any more.
        """
        try:
            dial = await permitted(asked.worker_name, registered_by, self._networks)
            if dial.url in self._config.controllers:
                raise Forbidden("This server registers there itself: requests would go round in a circle.")
            if dial.url not in self._peers and len(self._peers) >= MOST_PEERS:
                raise Overloaded("Too many workers of FastChat's are registered.", retry_after_s=60.0)
        except ServeError as error:
            logger.warning("The FastChat worker %.300r of %s is refused: %s", asked.worker_name, registered_by, error)
            raise
        hint = "start it with --worker-address and that address"
        self._keep(dial, leased=asked.check_heart_beat, multimodal=asked.multimodal, hint=hint)

    def beat(self, worker_name: str, queue_length: int) -> bool:
        """Note that a worker was heard of. Whether it is known: it has to register otherwise."""
        peer = self._peers.get(worker_name.rstrip("/"))
        if peer is None:
            return False
        peer.beat(queue_length)
        return True

    async def refresh(self) -> None:
        """Look at all of them now."""
        with anyio.move_on_after(REFRESH_S):
            async with anyio.create_task_group() as looking:
                for peer in tuple(self._peers.values()):
                    looking.start_soon(peer.look_again)

    @property
    def multimodal(self) -> frozenset[str]:
        """Models that take images, as their workers said."""
        return frozenset(name for peer in self._peers.values() if peer.multimodal for name in peer.workers)

    # ------------------------------------------------------------------------------------- life cycle

    def refuse(self) -> None:
        """Take no new work."""
        for worker in self._workers():
            worker.refuse()

    async def drain(self) -> None:
        """Take no new work, and return when all accepted work is done."""
        async with anyio.create_task_group() as tasks:
            for worker in self._workers():
                tasks.start_soon(worker.drain)

    def expel(self, error: ServeError) -> None:
        """End everything under way."""
        for worker in self._workers():
            worker.expel(error)

    def _workers(self) -> Iterator[FastChatWorker]:
        for peer in tuple(self._peers.values()):
            yield from tuple(peer.workers.values())

    async def _find(self, url: str) -> None:
        """One of the config's: whenever it is there, and wherever its name leads to by then."""
        hint = "correct [fastchat] upstreams"
        while True:
            try:
                dial = await resolved(url)
            except InvalidRequest as error:
                if hint:
                    logger.warning("fastchat.upstreams: %s: %s", url, error)
            else:
                lost = anyio.Event()
                self._keep(dial, leased=False, hint=hint, then=lost.set)
                await lost.wait()
            hint = ""  # it was said
            await anyio.sleep(FIND_EVERY_S)

    def _keep(
        self,
        dial: Dial,
        *,
        leased: bool,
        multimodal: bool = False,
        hint: str,
        then: Callable[[], object] = lambda: None,
    ) -> None:
        """Have the process at `dial` in place of what was known by its address; `then`: once it is lost."""
        if self._tasks is None:
            raise shutting_down()
        known = self._peers.pop(dial.url, None)
        if known is not None:
            known.retire()

        def lost(peer: Peer) -> None:
            if self._peers.get(dial.url) is peer:
                del self._peers[dial.url]
            then()

        peer = Peer(dial, self._config, self._registry, leased=leased, multimodal=multimodal, hint=hint, lost=lost)
        self._peers[dial.url] = peer
        self._tasks.start_soon(peer.run)
