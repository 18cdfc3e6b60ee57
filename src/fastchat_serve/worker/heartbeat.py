"""Keep a process with workers known where it is wanted: at all controllers, whatever happens to either side.

The links to controllers are dialled here, and again for ever when they break, so the order in which processes start
does not matter. Over such a link goes all that is to know of the workers, and requests, too. A worker with
``reach = "out"`` is at no address: then the controllers say who else wants to call, and they are dialled likewise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from fastchat_serve.protocol.link import Callers, FromCaller, FromHost, Rejected, Welcome
from fastchat_serve.worker.complaints import Complaints
from fastchat_serve.worker.dial import NODE, Backoff, Credentials, DialError, dial
from fastchat_serve.worker.link import Link
from fastchat_serve.worker.names import Names
from fastchat_serve.worker.node import Node, Notice

__all__ = ["Membership"]

logger = logging.getLogger(__name__)


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
        self._names = Names(self._controllers, self._dial_while_wanted, self._complaints)
        self._callers: dict[tuple[str, str], frozenset[str]] = {}
        """By who named them: a URL, and one address of its host; none for those that were named themselves."""
        self.listed = 0

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Dial until cancelled."""
        await self._names.run(task_status=task_status)

    def _wanted(self, url: str, at: str) -> bool:
        if at:
            return self._names.leads_to(url, at)
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
            self._names.start(caller, "")


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
