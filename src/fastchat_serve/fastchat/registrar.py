"""This process as a worker at FastChat's controllers: registered, again whenever it has to be, and heard of.

To a controller it is one worker with all the models that are served here. However long a controller is away, it is
tried again: FastChat's own workers give up at once.
"""

from __future__ import annotations

import logging
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
from anyio.abc import SocketAttribute

from fastchat_serve.config import FastChat
from fastchat_serve.controller.registry import Registry
from fastchat_serve.errors import ServeError
from fastchat_serve.fastchat.addresses import resolved
from fastchat_serve.fastchat.client import CONNECT_S, Client, Unreachable
from fastchat_serve.fastchat.served import models_served, status
from fastchat_serve.protocol import fastchat as wire

__all__ = ["Registrar"]

logger = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 0.2
LAST_RETRY_S: Final = 5.0
LOOK_EVERY_S: Final = 1.0
"""For models that come and go here: controllers are told at once, not with the next beat."""


class Registrar:
    """One controller.

    Args:
        controller: Its URL.
        scheme: By which this server is reached.
    """

    def __init__(self, controller: str, config: FastChat, registry: Registry, scheme: str) -> None:
        self._controller, self._config, self._registry, self._scheme = controller, config, registry, scheme
        self._port: int | None = None
        self._listening = anyio.Event()
        self._left = False
        self._retry_s = FIRST_RETRY_S

    def listening(self, port: int) -> None:
        """This server answers there from now on."""
        self._port = port
        self._listening.set()

    def leave(self) -> None:
        """No more beats: the controller forgets this process when its lease is over, or at its next refresh."""
        self._left = True

    async def run(self) -> None:
        """Stay registered until cancelled."""
        await self._listening.wait()
        while not self._left:
            try:
                await self._stay()
            except ServeError as error:
                if self._retry_s == FIRST_RETRY_S:
                    logger.warning("FastChat's controller %s: %s Trying on.", self._controller, error)
                await anyio.sleep(self._retry_s)
                self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)

    async def _stay(self) -> None:
        """Register, and let it hear of us as long as it knows us. Returns when it does not. Raises `ServeError`."""
        models = models_served(self._registry)
        if not models:
            await self._changed(models)
            return
        dial = await resolved(self._controller)
        async with Client(dial, dial.places[0]) as client:
            ours = self._config.advertise or await self._address(dial.places[0])
            await client.call("/register_worker", self._registration(ours), Any)
            self._retry_s = FIRST_RETRY_S
            logger.info("Registered as %s at FastChat's controller %s.", ours, self._controller)
            while not self._left:
                if await self._changed(models):
                    return
                beat = wire.HeartBeat(ours, status(self._registry).queue_length)
                if not (await client.call("/receive_heart_beat", beat, wire.HeartBeatReply)).exist:
                    return

    def _registration(self, ours: str) -> wire.RegisterWorker:
        return wire.RegisterWorker(ours, check_heart_beat=True, worker_status=status(self._registry))

    async def _changed(self, models: tuple[str, ...]) -> bool:
        """Wait for the time of the next beat. Whether other models are served by then, or before."""
        until = anyio.current_time() + self._config.beat_s
        while (left_s := until - anyio.current_time()) > 0:
            await anyio.sleep(min(left_s, LOOK_EVERY_S))
            if models_served(self._registry) != models:
                return True
        return False

    async def _address(self, place: str) -> str:
        """Ours, as seen from there: that of a connection to it, if this server answers at it.

        Raises:
            Unreachable: Nothing is there, or nothing of ours is here.
        """
        parts = urlsplit(place)
        host = await _local_address(parts.hostname or "", parts.port or 0)
        if host is None:
            raise Unreachable("Nothing answers there.")
        assert self._port is not None
        if await _local_address(host, self._port) is None:
            raise Unreachable(
                f"It would look for us at {host}:{self._port}, where we do not listen. "
                "Set server.host, or the right address as fastchat.advertise."
            )
        return f"{self._scheme}://{f'[{host}]' if ':' in host else host}:{self._port}"


async def _local_address(host: str, port: int) -> str | None:
    """This end of a connection to `port` of `host`; None if there can be none."""
    try:
        with anyio.fail_after(CONNECT_S):
            async with await anyio.connect_tcp(host, port) as stream:
                return str(stream.extra(SocketAttribute.local_address)[0])
    except (OSError, TimeoutError):
        return None
