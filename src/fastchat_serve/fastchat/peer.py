"""One process of FastChat's that serves models: the workers made of them, as long as it answers.

It is asked what it serves before anything is listed, and again every so often. Its workers are listed one by one, for
each model by itself: FastChat lets models with different templates share an address.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final
from urllib.parse import urlsplit

import anyio

from fastchat_serve.config import FastChat
from fastchat_serve.controller.registry import Registry
from fastchat_serve.errors import EngineError, ServeError
from fastchat_serve.fastchat.addresses import Dial, Networks, permitted
from fastchat_serve.fastchat.client import Client, NotOffered, Unreachable
from fastchat_serve.fastchat.conversation import render
from fastchat_serve.fastchat.engine import About, FastChatEngine
from fastchat_serve.protocol import fastchat as wire
from fastchat_serve.worker.local import LocalWorker

__all__ = ["LOOK_EVERY_S", "FastChatWorker", "Peer"]

logger = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 15.0
FIRST_RETRY_S: Final = 0.05
"""FastChat's workers register before they listen."""
LAST_RETRY_S: Final = 5.0
MAY_MISS: Final = 3
"""So often it may keep silent: FastChat's workers cannot answer while they embed."""
GIVE_UP_AFTER: Final = 8
"""So often it is looked for at first, if it has not said that it will be heard of."""
LET_FINISH_S: Final = 600.0
"""For what is under way at a worker that is not listed any more."""
USUAL_CONTEXT: Final = 2048
"""What FastChat assumes where nothing is known."""
_SLOWEST: Final = 0.001


class FastChatWorker(LocalWorker):
    """One model of a peer. Its queue is longer than what we know of: other front ends use it as well.

    Attributes:
        count: Its tokenizer is not to be had, but it counts. See `FastChatEngine.count`.
    """

    def __init__(self, engine: FastChatEngine, name: str, address: str, config: FastChat) -> None:
        super().__init__(
            engine,
            names=(name,),
            concurrency=config.concurrency,
            queue=config.queue,
            timeouts=config.timeouts,
            tool_parser="",
        )
        self.id = f"{name}@{address}"
        self.count = engine.count
        self._others = 0

    @property
    def ours(self) -> int:
        """Requests of ours that it has not finished."""
        return super().queue_length

    @property
    def queue_length(self) -> int:
        return self.ours + self._others

    def report(self, others: int, speed: float) -> None:
        """What its process says: how many requests of others it has."""
        self._others, self.speed = others, max(speed, _SLOWEST)
        self.on_change()


class Peer:
    """See the module. `run` ends when it is lost, or its lease is over, or `retire` was called.

    Args:
        dial: How to reach it.
        leased: It has to be heard of again and again; otherwise it is given up if it does not answer.
        multimodal: As it said when it registered.
        hint: What to do if nothing answers there, for the log. Empty: say nothing.
        lost: Called when its workers are not listed any more, for good.
    """

    def __init__(
        self,
        dial: Dial,
        config: FastChat,
        registry: Registry,
        *,
        leased: bool,
        multimodal: bool = False,
        hint: str = "",
        lost: Callable[[Peer], None],
    ) -> None:
        self.dial, self.multimodal = dial, multimodal
        self.workers: dict[str, FastChatWorker] = {}
        self._config, self._registry, self._lost = config, registry, lost
        self._leased, self._hint = leased, hint
        self._networks = Networks(config.networks)
        self._expires_at = anyio.current_time() + config.lease_s
        self._client: Client | None = None
        self._behind: dict[str, Client] = {}
        self._unusable: set[str] = set()
        self._missed = 0
        self._retired = False
        self._wake, self._looked = anyio.Event(), anyio.Event()

    def beat(self, queue_length: int) -> None:
        """It was heard of."""
        self._expires_at = anyio.current_time() + self._config.lease_s
        self._report(queue_length)

    def suspect(self) -> None:
        """Look soon whether it is still there."""
        self._wake.set()

    async def look_again(self) -> None:
        """Look now, and return when that is done."""
        looked = self._looked
        self._wake.set()
        await looked.wait()

    def retire(self) -> None:
        """Its workers get no more requests; what is under way may finish."""
        self._retired = True
        self._wake.set()
        self._unlist(*self.workers)
        self._looked.set()

    async def run(self) -> None:
        async with AsyncExitStack() as self._clients, anyio.create_task_group() as self._tasks:
            await self._keep_looking()
            self.retire()
            self._lost(self)

    async def _keep_looking(self) -> None:
        retry_s = FIRST_RETRY_S
        while not self._retired:
            self._wake = anyio.Event()
            try:
                await self._look()
            except ServeError as error:
                if not self._may_go_on(error):
                    return
                pause_s, retry_s = retry_s, min(2 * retry_s, LAST_RETRY_S)
            else:
                self._missed, self._hint = 0, ""
                pause_s, retry_s = LOOK_EVERY_S, FIRST_RETRY_S
            self._tell_looked()
            left_s = self._expires_at - anyio.current_time() if self._leased else pause_s
            with anyio.move_on_after(min(pause_s, max(left_s, 0))):
                await self._wake.wait()
            if self._leased and anyio.current_time() >= self._expires_at:
                logger.warning("The FastChat worker at %s was not heard of for too long.", self.dial.url)
                return

    async def _look(self) -> None:
        """See what it serves now. Raises `ServeError`."""
        if self._client is None:
            self._client, status = await self._connect()
        else:
            status = await self._status(self._client)
        for name in status.model_names:
            if name not in self.workers and not self._retired:
                await self._try_to_list(name, self._client)
        self._unlist(*(self.workers.keys() - set(status.model_names)))
        self._report(status.queue_length, status.speed)

    async def _try_to_list(self, name: str, client: Client) -> None:
        """One more model. What it cannot say of one does no harm to others."""
        try:
            about = await self._about(name, client)
        except EngineError as error:
            if name not in self._unusable:
                logger.warning("Model %.200r at %s cannot be used: %s", name, self.dial.url, error)
            self._unusable.add(name)
        else:
            await self._list(about, client)

    async def _connect(self) -> tuple[Client, wire.WorkerStatus]:
        failure: ServeError = Unreachable("The FastChat process has no address.")
        for place in self.dial.places:
            client = Client(self.dial, place)
            try:
                status = await self._status(client)
            except ServeError as error:
                await client.__aexit__()
                failure = error
            else:
                await self._clients.enter_async_context(client)
                return client, status
        raise failure

    @staticmethod
    async def _status(client: Client) -> wire.WorkerStatus:
        return await client.call("/worker_get_status", None, wire.WorkerStatus)

    async def _about(self, name: str, client: Client) -> About:
        """What there is to know of a model."""
        asked = wire.ModelQuery(name)
        source = client
        try:
            details = await client.call("/model_details", asked, wire.ContextLength)
        except NotOffered:  # FastChat's controllers have no such route; their workers have
            behind = await self._worker_behind(name, client)
            if behind is None:
                return About(name=name, context_length=USUAL_CONTEXT, template=None)
            source = behind
            details = await source.call("/model_details", asked, wire.ContextLength)
        return About(
            name=name,
            context_length=details.context_length,
            template=await self._template(asked, source),
            embeds=await client.offers("/worker_get_embeddings"),
            counter=source,
        )

    async def _template(self, asked: wire.ModelQuery, source: Client) -> wire.Conversation | None:
        """How conversations have to be written; None if that is not to be had."""
        try:
            template = (await source.call("/worker_get_conv_template", asked, wire.ConversationReply)).conv
            render(template, ())
        except EngineError as error:
            logger.warning("Model %.200r at %s cannot chat: %s", asked.model, self.dial.url, error)
            return None
        return template

    async def _worker_behind(self, name: str, controller: Client) -> Client | None:
        try:
            address = (await controller.call("/get_worker_address", wire.ModelQuery(name), wire.Address)).address
            its_own = urlsplit(self.dial.places[0]).hostname or ""
            dial = await permitted(address, its_own, self._networks)
        except ServeError as error:
            logger.warning("Model %.200r at %s cannot chat: %s", name, self.dial.url, error)
            return None
        if dial.url not in self._behind:
            self._behind[dial.url] = await self._clients.enter_async_context(Client(dial, dial.places[0]))
        return self._behind[dial.url]

    async def _list(self, about: About, client: Client) -> None:
        worker = FastChatWorker(FastChatEngine(client, about, self.suspect), about.name, self.dial.url, self._config)
        await self._tasks.start(worker.run)
        if self._retired:
            worker.stop()
            return
        self.workers[about.name] = worker
        self._registry.add(worker)
        logger.info("Model %.200r is served by the FastChat process at %s.", about.name, self.dial.url)

    def _unlist(self, *names: str) -> None:
        for name in names:
            worker = self.workers.pop(name)
            self._registry.remove(worker.id)
            worker.refuse()
            self._tasks.start_soon(_finish, worker)

    def _report(self, queue_length: int, speed: float | None = None) -> None:
        others = max(queue_length - sum(worker.ours for worker in self.workers.values()), 0)
        for worker in self.workers.values():
            worker.report(others, worker.speed if speed is None else speed)

    def _may_go_on(self, error: ServeError) -> bool:
        """Whether to look again after it failed to answer."""
        self._missed += 1
        if not self.workers:
            # The very first look often comes before its port listens.
            if self._hint and self._missed == MAY_MISS:
                what = "Nothing that serves models answers at %s yet (%s) If it listens elsewhere: %s."
                logger.warning(what, self.dial.url, error, self._hint)
            return self._leased or self._missed < GIVE_UP_AFTER
        if not isinstance(error, Unreachable) and self._missed < MAY_MISS:
            return True
        logger.warning("The FastChat process at %s is lost: %s", self.dial.url, error)
        return False

    def _tell_looked(self) -> None:
        self._looked.set()
        self._looked = anyio.Event()


async def _finish(worker: LocalWorker) -> None:
    """Let it do what it has accepted, and end it."""
    with anyio.move_on_after(LET_FINISH_S):
        await worker.drain()
    worker.stop()
