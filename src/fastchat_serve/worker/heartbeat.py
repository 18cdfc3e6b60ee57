"""Keep a process with workers known where it is wanted: at all controllers, whatever happens to either side.

The links to controllers are dialled here, and again for ever when they break, so the order in which processes start
does not matter. Over such a link goes all that is to know of the workers, and requests, too. A name that stands for
several addresses is taken for as many controllers. A worker with ``reach = "out"`` is at no address: then the
controllers say who else wants to call, and they are dialled likewise.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Final

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus

from fastchat_serve.protocol.link import Callers, FromCaller, FromHost, Rejected, Welcome
from fastchat_serve.worker.dial import NODE, Backoff, Credentials, DialError, dial, resolve
from fastchat_serve.worker.link import Link
from fastchat_serve.worker.node import Node, Notice

__all__ = ["RESOLVE_S", "Complaints", "Membership", "look_up"]

logger = logging.getLogger(__name__)

RESOLVE_S: Final = 10.0
"""How often it is looked for new addresses of a name."""

_AGAIN_S: Final = 60.0
_PROBLEM_CHARS: Final = 1000


class Complaints:
    """What goes wrong again and again is said at once, and then once a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, dict[str, float]] = {}
        """When each problem was said, by what it is about: some come by turns."""
        self._swept_at = clock()

    def say(self, about: str, problem: str) -> None:
        """`problem` may be a peer's own words: it makes one line of the log, however it is written."""
        problem = " ".join(problem.split())[:_PROBLEM_CHARS]
        now = self._clock()
        if now - self._swept_at >= _AGAIN_S:
            self._sweep(now)
        said = self._said.setdefault(about, {})
        if now - said.get(problem, -math.inf) >= _AGAIN_S:
            said[problem] = now
            logger.warning("%s: %s", about, problem)

    def forget(self, about: str) -> None:
        """It went well."""
        self._said.pop(about, None)

    def _sweep(self, now: float) -> None:
        """Of most that it was about, such as processes that are gone for good, nothing is said again."""
        self._swept_at = now
        for about, said in list(self._said.items()):
            lately = {problem: at for problem, at in said.items() if now - at < _AGAIN_S}
            if lately:
                self._said[about] = lately
            else:
                del self._said[about]


async def look_up(url: str, found: Callable[[str, tuple[str, ...]], None], complaints: Complaints) -> None:
    """Call ``found(url, addresses)`` with all of the URL's host, now and again, until cancelled."""
    backoff = Backoff()
    while True:
        try:
            found(url, await resolve(url))
        except DialError as error:  # those that are known are kept
            complaints.say(f"Cannot find {url}", str(error))
            await anyio.sleep(backoff.wait_s())
        else:
            backoff.reset()
            await anyio.sleep(RESOLVE_S)


class Membership:
    """See the module.

    Args:
        node: What is called through the links.
        controllers: URLs.
        address: Where others can dial us, given our IP address on the way to them; empty for ``reach = "out"``.
        credentials: For dialling.

    Attributes:
        listed: How many controllers list us now.
    """

    def __init__(
        self,
        node: Node,
        controllers: Iterable[str],
        address: Callable[[str], str],
        credentials: Credentials,
    ) -> None:
        self._node, self._controllers = node, tuple(controllers)
        self._address, self._credentials = address, credentials
        self._complaints = Complaints()
        self._kept: set[tuple[str, str]] = set()
        """Who is dialled: a URL, and one address of its host; none for those that a controller named."""
        self._addresses: dict[str, tuple[str, ...]] = {}
        """Of controllers, as they were looked up last."""
        self._callers: dict[tuple[str, str], frozenset[str]] = {}
        """By who named them."""
        self._tasks: TaskGroup | None = None
        self.listed = 0

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Dial until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            for url in self._controllers:
                self._tasks.start_soon(look_up, url, self._found, self._complaints)
            task_status.started()
            await anyio.sleep_forever()

    def _found(self, url: str, addresses: tuple[str, ...]) -> None:
        self._addresses[url] = addresses
        for address in addresses:
            self._keep(url, address)

    def _keep(self, url: str, at: str) -> None:
        if (url, at) not in self._kept:
            assert self._tasks is not None
            self._kept.add((url, at))
            self._tasks.start_soon(self._dial_while_wanted, url, at)

    def _wanted(self, url: str, at: str) -> bool:
        if at:
            return at in self._addresses[url]
        return any(url in named for named in self._callers.values())

    async def _dial_while_wanted(self, url: str, at: str) -> None:
        """A link that is well is kept in any case: a controller that has just started may not know its owner yet."""
        backoff = Backoff()
        joining: _Joining | None = None
        try:
            while self._wanted(url, at) and not self._node.leaving:
                if joining is None or not joining.well:
                    # A silent link is not waited for: if the way was cut, it may be long until TCP tries again there.
                    # Nor is it given up before there is another: if the other end was frozen, it goes on over it.
                    joining = await self._dial(url, at, joining)
                if joining is not None and joining.well:
                    began = anyio.current_time()
                    await joining.wait_unwell()
                    if joining.welcome:
                        backoff.lasted(anyio.current_time() - began)
                await anyio.sleep(backoff.wait_s())
        finally:
            self._kept.discard((url, at))
            self._callers.pop((url, at), None)

    async def _dial(self, url: str, at: str, before: _Joining | None) -> _Joining | None:
        """A new link in place of the one `before`, which stays if there is none or if it is well by then."""
        joining = _Joining(url, at, self)

        def host() -> Link[FromHost, FromCaller]:
            joining.link = self._node.host(
                address=self._address, on_notice=joining.notice, on_silent=joining.silent, on_closed=joining.closed
            )
            return joining.link

        try:
            await dial(url, NODE, host, self._credentials, at=at or None)
        except DialError as error:
            self._complaints.say(f"Not listed at {url}", str(error))
            return before
        if before is not None and before.well:
            joining.drop("the other end is heard again over the link that there was")
            return before
        if before is not None:
            before.drop("it was silent")
        return joining

    # ---------------------------------------------------------------------------------- of one controller

    def welcomed(self, url: str) -> None:
        self.listed += 1
        self._complaints.forget(f"Not listed at {url}")
        logger.info("Listed at %s.", url)

    def refused(self, url: str, reason: str) -> None:
        self._complaints.say(f"Not listed at {url}", reason)

    def lost(self, url: str, reason: str) -> None:
        self.listed -= 1
        if not self._node.leaving:
            self._complaints.say(f"Not listed at {url} any more", reason)

    def name_callers(self, by: tuple[str, str], callers: Iterable[str]) -> None:
        """Dial those as well."""
        self._callers[by] = frozenset(callers) - frozenset(self._controllers)
        for caller in self._callers[by]:
            self._keep(caller, "")


class _Joining:
    """One link to one who lists us, from here.

    Attributes:
        well: It is there, and something is heard.
    """

    link: Link[FromHost, FromCaller]

    def __init__(self, url: str, at: str, membership: Membership) -> None:
        self._url, self._at, self._membership = url, at, membership
        self.well, self._unwell = True, anyio.Event()
        self.welcome = False
        self._refused = False

    async def wait_unwell(self) -> None:
        await self._unwell.wait()

    def drop(self, reason: str) -> None:
        self.link.abort(reason)

    def notice(self, notice: Notice) -> None:
        match notice:
            case Welcome(callers):
                if not self.welcome:
                    self.welcome = True
                    self._membership.welcomed(self._url)
                self._membership.name_callers((self._url, self._at), callers)
            case Callers(urls):
                self._membership.name_callers((self._url, self._at), urls)
            case Rejected(reason, again):
                self._refused = True
                if not again:
                    self._membership.refused(self._url, reason)

    def silent(self, is_silent: bool) -> None:
        self.well = not is_silent
        if is_silent:
            self._unwell.set()
        else:
            self._unwell = anyio.Event()

    def closed(self, reason: str) -> None:
        self.well = False
        self._unwell.set()
        if self.welcome:
            self._membership.lost(self._url, reason)
        elif not self._refused:
            self._membership.refused(self._url, reason)
