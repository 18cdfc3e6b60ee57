"""All that is about FastChat in one process: routes, foreign workers, and its own registration elsewhere."""

from __future__ import annotations

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus
from litestar.handlers import BaseRouteHandler

from fastchat_serve.config import FastChat
from fastchat_serve.errors import ServeError
from fastchat_serve.fastchat.addresses import Networks
from fastchat_serve.fastchat.foreign import ForeignWorkers
from fastchat_serve.fastchat.registrar import Registrar
from fastchat_serve.routes.door import Door
from fastchat_serve.routes.fastchat.api import api_handlers
from fastchat_serve.routes.fastchat.controller import controller_handlers
from fastchat_serve.routes.fastchat.peers import Peers
from fastchat_serve.routes.fastchat.worker import worker_handlers
from fastchat_serve.routes.openai.service import Service

__all__ = ["FastChatSide"]


class FastChatSide:
    """See the module. ``await tasks.start(side.run)``.

    Args:
        service: What all routes serve from.
        door: Asks those for keys that are no peers.
        scheme: By which this server is reached.

    Attributes:
        handlers: For Litestar's router.
    """

    def __init__(self, config: FastChat, service: Service, door: Door, scheme: str = "http") -> None:
        registry = service.dispatcher.registry
        peers = Peers(Networks(config.networks), door)
        self._foreign = ForeignWorkers(config, registry)
        self._registrars = [Registrar(url, config, registry, scheme) for url in config.controllers]
        self.handlers: list[BaseRouteHandler] = [
            *controller_handlers(service, self._foreign, peers),
            *worker_handlers(service, peers),
            *api_handlers(service),
        ]

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Keep workers and registrations until `stop`."""
        async with anyio.create_task_group() as tasks:
            for registrar in self._registrars:
                tasks.start_soon(registrar.run)
            await self._foreign.run(task_status=task_status)
            tasks.cancel_scope.cancel()

    def listening(self, port: int) -> None:
        """The server answers from now on."""
        for registrar in self._registrars:
            registrar.listening(port)

    def refuse(self) -> None:
        """Take no new work."""
        self._foreign.refuse()
        for registrar in self._registrars:
            registrar.leave()

    async def drain(self) -> None:
        """Take no new work, and return when all accepted work is done."""
        self.refuse()
        await self._foreign.drain()

    def expel(self, error: ServeError) -> None:
        """End everything under way."""
        self._foreign.expel(error)

    def stop(self) -> None:
        """End `run`."""
        self._foreign.stop()
