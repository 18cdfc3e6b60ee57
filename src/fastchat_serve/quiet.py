"""A process that listens on nothing: workers that dial out (``reach = "out"``), and no other role.

It is driven as `server.HttpServer` is.
"""

from __future__ import annotations

import logging

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from fastchat_serve.app import Application

__all__ = ["QuietProcess", "is_quiet"]

logger = logging.getLogger(__name__)


def is_quiet(application: Application) -> bool:
    """Whether nobody has to reach this process."""
    config = application.config
    return config.controller is None and config.api is None and config.worker[0].reach == "out"


class QuietProcess:
    """See the module."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self.started = False
        self._over = anyio.Event()

    @property
    def where(self) -> str:
        """For the log."""
        return "to those that it dials; it listens nowhere"

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Load the engines, and dial until `drain` or `stop`. Raises `StartupError`."""
        async with self.application.asgi.lifespan(), self.application.linked() as start_links:
            start_links("", 0)
            self.started = True
            task_status.started()
            await self._over.wait()

    async def drain(self) -> None:
        """Take no new work, let accepted work finish for at most ``drain_s``, and end `run`."""
        drain_s = self.application.config.server.drain_s
        if not await self.application.drain(drain_s):
            logger.warning("Work that was not done within %g s was cut off.", drain_s)
        self._over.set()

    def stop(self) -> None:
        """End everything under way with an error that says so, and end `run`."""
        self.application.expel()
        self._over.set()
