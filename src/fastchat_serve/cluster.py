"""What connects this process with the others of its cluster, by its config: links in and out, for its roles.

A process with workers is a node: it dials controllers, and is called (`worker/node.py`, `worker/heartbeat.py`). A
controller lets nodes in and tells watchers of them (`controller/admission.py`, `watchers.py`). An API watches its
controllers and calls nodes (`controller/watching.py`). All of these links begin as HTTP requests to a server's port,
which `accept` takes.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from fastchat_serve.config import Config
from fastchat_serve.config import Worker as WorkerTable
from fastchat_serve.controller.admission import Admission
from fastchat_serve.controller.fleet import Fleet
from fastchat_serve.controller.registry import Registry
from fastchat_serve.controller.table import Table
from fastchat_serve.controller.watchers import Watchers
from fastchat_serve.controller.watching import LEARN_S, Watching
from fastchat_serve.errors import Forbidden, InvalidRequest, ServeError, Unavailable
from fastchat_serve.protocol.watch import Choosing, NodeCard, Watch
from fastchat_serve.routes.auth import Keys
from fastchat_serve.routes.exchange import Header, header
from fastchat_serve.tls import dialling_context
from fastchat_serve.worker.base import Worker
from fastchat_serve.worker.complaints import Complaints
from fastchat_serve.worker.dial import CALL, NODE, UPGRADE, WATCH, Credentials
from fastchat_serve.worker.heartbeat import Membership
from fastchat_serve.worker.host import Manage
from fastchat_serve.worker.node import Node

__all__ = ["ClusterLinks"]

_WILDCARDS = frozenset({"0.0.0.0", "::", ""})


class ClusterLinks:
    """See the module.

    Args:
        registry: Where workers of other processes are listed for dispatch.
        workers: Those of this process, by id; they may change while it runs.
        keys: Has the cluster's token; without it whoever reaches the port is let in.
        choose: Told by a controller elsewhere how workers are to be picked.
        manage: Does what operators elsewhere want of our workers.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        workers: Mapping[str, Worker],
        keys: Keys,
        choose: Callable[[Choosing], None],
        manage: Manage,
    ) -> None:
        self._config, self._keys, self._choose = config, keys, choose
        # Those that come later are reached as those of the config are; the backend does not matter for that.
        self._worker = config.worker[0] if config.worker else WorkerTable(backend="any")
        self._credentials = Credentials(_authorization(config), dialling_context(config))
        self._tls = config.server.tls_certificate is not None
        self._host, self._port = config.server.host, 0
        self._complaints = Complaints()
        self._accepts: dict[str, Callable[[], asyncio.Protocol]] = {}
        self._running = False
        self.node = self._node(workers, manage)
        self._fleet: Fleet | None = None
        self._table: Table | None = None
        self._admission: Admission | None = None
        self._watchers: Watchers | None = None
        if config.controller is not None or config.api is not None:
            self._be_called_upon(registry)
        self._membership = self._make_membership()
        self._watching = self._make_watching()
        self._started_at = math.inf
        registry.is_learning = self._is_learning

    @property
    def paths(self) -> Mapping[bytes, Callable[[Iterable[Header], asyncio.Transport], asyncio.Protocol]]:
        """Where the server's connections may turn into links; each raises `ServeError` if one may not."""
        return MappingProxyType({path.encode(): partial(self._accept, path) for path in self._accepts})

    def listening(self, host: str, port: int) -> None:
        """The server's socket is bound there."""
        self._host, self._port = host, port

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Keep all links until cancelled. The server has to be listening."""
        self._started_at = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for part in (self.node, self._fleet, self._admission, self._membership, self._watching):
                if part is not None:
                    await tasks.start(part.run)
            self._running = True
            task_status.started()
            await anyio.sleep_forever()

    def leave(self) -> None:
        """Tell others that no new work is taken here."""
        if self.node is not None:
            self.node.leave()
            if self._table is not None:
                self._table.remove(self.node.id)

    def expel(self, error: ServeError) -> None:
        """End everything that is under way elsewhere with `error`."""
        if self._fleet is not None:
            self._fleet.expel(error)

    async def close(self) -> None:
        """End all links, after what is still to be said. The caller bounds the wait for those that do not listen."""
        if self._fleet is not None:
            self._fleet.ending = True
        links = [link for part in (self.node, self._watchers, self._fleet) if part is not None for link in part.links]
        for link in links:
            link.close("this process is shutting down")
        for link in links:
            await link.wait_closed()

    # -------------------------------------------------------------------------------------------------

    def _is_learning(self) -> bool:
        """A controller that starts anew hears of its nodes within the time in which they dial again."""
        if self._table is not None and anyio.current_time() - self._started_at < LEARN_S:
            return True
        return self._watching is not None and self._watching.is_learning

    def _node(self, workers: Mapping[str, Worker], manage: Manage) -> Node | None:
        config = self._config
        if not config.worker and (config.controller is None or config.api is None):
            return None
        node = Node(workers, manage)
        if self._worker.reach == "in":
            self._accepts[CALL] = node.host
        return node

    def _be_called_upon(self, registry: Registry) -> None:
        """Take nodes in, and, as a controller, list them."""
        self._fleet = Fleet(registry)
        if self._config.controller is not None:
            self._table = Table()
        self._admission = Admission(self._fleet, self._table, self._credentials)
        self._accepts[NODE] = self._admission.accept
        if self._table is not None and (table := self._config.controller) is not None:
            choosing = Choosing(table.policy, dict(table.policies))
            self._watchers = Watchers(self._table, choosing, self._admission.name_callers)
            self._accepts[WATCH] = self._watchers.accept
            if self.node is not None:
                self._table.add(NodeCard(self.node.id, self._worker.advertise or "", here=True))

    def _make_membership(self) -> Membership | None:
        worker = self._worker
        if self.node is None or not worker.controllers:
            return None
        address = self._address if worker.reach == "in" else lambda local_host: ""
        return Membership(self.node, worker.controllers, address, self._credentials)

    def _make_watching(self) -> Watching | None:
        api = self._config.api
        if api is None or not api.controllers or self._fleet is None:
            return None
        ours = "" if self.node is None else self.node.id
        choose = self._choose if self._config.controller is None else _keep_ours
        return Watching(self._fleet, api.controllers, self._introduction, self._credentials, choose, ours)

    def _address(self, local_host: str) -> str:
        """Where others dial us, as long as they see us at `local_host`."""
        advertised = self._worker.advertise
        host = local_host if self._host in _WILDCARDS else self._host
        return advertised or f"{'https' if self._tls else 'http'}://{f'[{host}]' if ':' in host else host}:{self._port}"

    def _introduction(self) -> Watch:
        api = self._config.api
        assert api is not None
        return Watch(api.advertise or "", self._port, self._tls)

    def _accept(self, path: str, headers: Iterable[Header], transport: asyncio.Transport) -> asyncio.Protocol:
        try:
            self._check(headers, transport)
        except InvalidRequest as refusal:
            self._complaints.say(f"A process at {_peer_host(transport)} is refused", str(refusal))
            raise
        if not self._running:
            raise Unavailable("This process is just starting.", retry_after_s=1.0)
        return self._accepts[path]()

    def _check(self, headers: Iterable[Header], transport: asyncio.Transport) -> None:
        """Raises `InvalidRequest` to who is none of this cluster."""
        if self._keys:
            self._keys.require(header(headers, b"authorization"))
        if self._tls and self._config.cluster.tls_ca is not None and not _shows_certificate(transport):
            raise Forbidden("Show a certificate of this cluster: mutual TLS is wanted here.")
        wanted = header(headers, b"upgrade").decode("latin-1")
        if wanted != UPGRADE:
            raise InvalidRequest(
                f"Links here speak {UPGRADE}: install the same version of fastchat-serve on both sides."
            )


def _peer_host(transport: asyncio.Transport) -> str:
    address = transport.get_extra_info("peername")
    return str(address[0]) if isinstance(address, tuple) else "an unknown address"


def _keep_ours(choosing: Choosing) -> None:
    """Of two controllers in one cluster, the nearer says it."""


def _authorization(config: Config) -> bytes:
    token = config.cluster.token
    return b"" if token is None else b"Bearer " + token.reveal().encode()


def _shows_certificate(transport: asyncio.Transport) -> bool:
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    return tls is not None and bool(tls.getpeercert())
