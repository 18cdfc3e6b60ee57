"""Follow the names of controllers: a name that stands for several addresses is taken for as many controllers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus

from fastchat_serve.worker.complaints import Complaints
from fastchat_serve.worker.dial import Backoff, DialError, resolve

__all__ = ["RESOLVE_S", "Names"]

RESOLVE_S: Final = 10.0
"""How often it is looked for new addresses of a name."""


class Names:
    """Runs one task for each address that a name leads to; the task ends when it finds that it does so no more.

    Args:
        urls: Their hosts are the names.
        keep: The task: given a URL, and one address of its host.
        complaints: Told of names that are not found. The addresses that were known are kept then.
    """

    def __init__(
        self, urls: Iterable[str], keep: Callable[[str, str], Awaitable[None]], complaints: Complaints
    ) -> None:
        self._urls, self._keep, self._complaints = tuple(urls), keep, complaints
        self._addresses: dict[str, tuple[str, ...]] = {}
        """As they were looked up last."""
        self._kept: set[tuple[str, str]] = set()
        self._tasks: TaskGroup | None = None

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Look all names up, now and again, until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            for url in self._urls:
                self._tasks.start_soon(self._look_up, url)
            task_status.started()
            await anyio.sleep_forever()

    def leads_to(self, url: str, at: str) -> bool:
        return at in self._addresses.get(url, ())

    def start(self, url: str, at: str) -> None:
        """Run the task for this one as well, unless it runs."""
        if (url, at) not in self._kept:
            assert self._tasks is not None
            self._kept.add((url, at))
            self._tasks.start_soon(self._run_task, url, at)

    async def _look_up(self, url: str) -> None:
        backoff = Backoff()
        while True:
            try:
                self._addresses[url] = await resolve(url)
            except DialError as error:
                self._complaints.say(f"Cannot find {url}", str(error))
                await anyio.sleep(backoff.wait_s())
            else:
                backoff.reset()
                for at in self._addresses[url]:
                    self.start(url, at)
                await anyio.sleep(RESOLVE_S)

    async def _run_task(self, url: str, at: str) -> None:
        try:
            await self._keep(url, at)
        finally:
            self._kept.discard((url, at))
