"""Config in, one Litestar app for its roles out, with the workers that live and die with it."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.plugins import PluginProtocol
from litestar.plugins.core import MsgspecDIPlugin

from fastchat_serve.config import Config, Controller
from fastchat_serve.configfile.load import config_with_worker
from fastchat_serve.configfile.rules import is_loopback
from fastchat_serve.controller.dispatcher import Dispatcher
from fastchat_serve.controller.naming import policy_named
from fastchat_serve.controller.operations import Operations
from fastchat_serve.controller.policies import POLICIES, shortest_queue
from fastchat_serve.controller.registry import Registry
from fastchat_serve.controller.waking import Waking
from fastchat_serve.errors import PluginError, StartupError, shutting_down
from fastchat_serve.hookspecs import Progress
from fastchat_serve.making import check_worker, make_worker
from fastchat_serve.plugins import Plugins
from fastchat_serve.policy import Policy
from fastchat_serve.progress import LogProgress
from fastchat_serve.routes.aliases import alias_handlers
from fastchat_serve.routes.auth import Keys, Token
from fastchat_serve.routes.cluster import cluster_handlers
from fastchat_serve.routes.decisions import decision_handlers
from fastchat_serve.routes.door import Door
from fastchat_serve.routes.errors import EXCEPTION_HANDLERS
from fastchat_serve.routes.health import health_handlers
from fastchat_serve.routes.hosts import Hosts
from fastchat_serve.routes.lifecycle import lifecycle_handlers
from fastchat_serve.routes.metrics import Metrics
from fastchat_serve.routes.openai.chat import chat_route
from fastchat_serve.routes.openai.completions import completions_route
from fastchat_serve.routes.openai.embeddings import embeddings_route
from fastchat_serve.routes.openai.models import model_handlers
from fastchat_serve.routes.openai.service import Service
from fastchat_serve.routes.openapi import schema_handler
from fastchat_serve.routes.response import IdentifiedResponse
from fastchat_serve.watchdog import Watchdog
from fastchat_serve.worker.base import OwnWorker
from fastchat_serve.worker.crew import Crew, Recipe

if TYPE_CHECKING:
    from fastchat_serve.cluster import ClusterLinks
    from fastchat_serve.protocol.watch import Choosing
    from fastchat_serve.routes.fastchat.side import FastChatSide
    from fastchat_serve.routes.siblings import Siblings

__all__ = ["Application", "create_app"]

logger = logging.getLogger(__name__)

LAST_WORDS_S = 1.0
"""For what is on its way to other processes when links end."""


class Application:
    """One process with the roles that its config has tables for, and the Litestar app in front of them.

    Everything that can be wrong with a config is found here, before anything is opened.

    Args:
        plugins: Where backends, models and policies come from; by default what is installed.
        progress: Told how far the loading of engines is; by default the log is.
        siblings: Processes that share the port, and have metrics as well.

    Attributes:
        crew: Its workers.
        asgi: The Litestar app. Its lifespan opens and closes the workers.
        hot: Those of its routes that our own server can call directly, by path.
        door: Lets requests in; the app's guard.
        links: To the other processes of its cluster, once it is served; None: it has no part in one.
        asked_to_drain: An operator has asked for it; the signal to do so comes from ourselves.
        fastchat: All that is about FastChat's processes; None: they are not served.

    Raises:
        StartupError: The config names what is not there.
    """

    def __init__(
        self,
        config: Config,
        plugins: Plugins | None = None,
        progress: Progress | None = None,
        siblings: Siblings | None = None,
    ) -> None:
        self.config, self._siblings = config, siblings
        self.asked_to_drain = False
        self._parent = os.getppid()  # who leads us, if we have siblings; another takes its place if it dies
        self._plugins = plugins or Plugins()
        self._plugins.load(config.plugins)
        self.registry = Registry()
        self._progress = progress or LogProgress()
        self.crew = Crew(on_come=self._list, on_go=self._unlist, grace_s=config.server.drain_s)
        for index in range(len(config.worker)):
            self.crew.add(self._recipe(config, index))
        self.waking = Waking(self.registry)
        self.operations = Operations(self.crew, self.registry, self._recipe_of)
        self.dispatcher = self._dispatcher()
        self.watchdog = Watchdog()
        self.metrics = Metrics(self.registry, self.watchdog, self.dispatcher.moves)
        service = Service(
            dispatcher=self.dispatcher,
            waking=self.waking,
            metrics=self.metrics,
            limits=config.limits,
            max_body_bytes=config.server.max_body_bytes,
            tool_parsers=self._plugins.tool_parsers,
            policies={**POLICIES, **self._plugins.policies} if config.api and config.api.policy_header else {},
        )
        cors = _cors(config.server.cors_origins)
        self.door = Door(_keys(config), _hosts(config), cors, _token(config))
        hot = (chat_route(service), completions_route(service)) if config.api is not None else ()
        self.hot = {route.path.encode(): route for route in hot}
        self.links = self._links()
        self.fastchat = self._fastchat(service)
        self.asgi = self._litestar(service, cors)

    @property
    def workers(self) -> tuple[OwnWorker, ...]:
        """Those of this process."""
        return self.crew.workers

    async def drain(self, grace_s: float) -> bool:
        """Take no new work; return when all accepted work is done, or cut off at `grace_s`.

        Returns:
            Whether all of it was done.
        """
        with anyio.move_on_after(grace_s) as grace:
            async with anyio.create_task_group() as tasks:
                for each in self._sources:
                    tasks.start_soon(each.drain)
        if grace.cancelled_caught:
            self.expel()
        return not grace.cancelled_caught

    def refuse(self) -> None:
        """Take no new work, and say so at ``/ready``, from now on."""
        self.crew.refuse()
        for side in self._fastchat_if_any:
            side.refuse()
        if self.links is not None:
            self.door.closed = True
            self.links.leave()

    def expel(self) -> None:
        """End everything under way with an error that says why."""
        for each in self._sources:
            each.expel(shutting_down())
        if self.links is not None:
            self.links.expel(shutting_down())

    @asynccontextmanager
    async def linked(self) -> AsyncIterator[Callable[[str, int], None]]:
        """Call what this yields, with the address of the server's socket, once that listens: links are kept until left.

        Whatever is still to be said on them is said then.
        """
        links = self.links
        if links is None:
            yield lambda host, port: None
            return
        async with anyio.create_task_group() as tasks:

            def start(host: str, port: int) -> None:
                links.listening(host, port)
                tasks.start_soon(links.run)

            try:
                yield start
            finally:
                with anyio.move_on_after(LAST_WORDS_S, shield=True):
                    await links.close()
                tasks.cancel_scope.cancel()

    def listening(self, port: int) -> None:
        """The server's socket answers from now on."""
        for side in self._fastchat_if_any:
            side.listening(port)

    def _fastchat(self, service: Service) -> FastChatSide | None:
        if not self.config.fastchat.enabled:
            return None
        from fastchat_serve.routes.fastchat.side import FastChatSide  # most servers start without it, and sooner

        scheme = "http" if self.config.server.tls_certificate is None else "https"
        return FastChatSide(self.config.fastchat, service, self.door, scheme)

    @property
    def _sources(self) -> tuple[OwnWorker | FastChatSide, ...]:
        """Of answers: what has work that may be under way."""
        return (*self.workers, *self._fastchat_if_any)

    @property
    def _fastchat_if_any(self) -> tuple[FastChatSide, ...]:
        return () if self.fastchat is None else (self.fastchat,)

    def _links(self) -> ClusterLinks | None:
        if not takes_part(self.config):
            return None
        from fastchat_serve.cluster import ClusterLinks  # most servers start without it, and sooner

        return ClusterLinks(
            self.config, self.registry, self.crew.by_id, _token(self.config), self._choose, self.operations.obey
        )

    @property
    def _complaint(self) -> str:
        """Why this process should get no requests now; empty if it may. What is true of its models is said besides."""
        if self.door.closed:
            return "The server is shutting down."
        return self.watchdog.complaint

    @property
    def _ready(self) -> bool:
        """Those of its models that are served here are; a controller has none of its own."""
        serves = self.config.api is not None or self.workers
        return not self._complaint and (self.registry.ready if serves else True)

    def _dispatcher(self) -> Dispatcher:
        table = self.config.controller or Controller()

        def named(name: str, *path: str) -> Policy:
            try:
                return policy_named(name, self._plugins)
            except LookupError as error:
                raise self.config.error(("controller", *path), str(error.args[0])) from None

        policies = {model: named(name, "policies", model) for model, name in table.policies.items()}
        return Dispatcher(self.registry, named(table.policy, "policy"), policies=policies)

    def _choose(self, choosing: Choosing) -> None:
        """As a controller elsewhere says. A policy that is not installed here cannot be had."""

        def named(name: str) -> Policy:
            try:
                return policy_named(name, self._plugins)
            except (LookupError, PluginError) as error:
                logger.warning("The controller's policy %r cannot be had here: %s", name, error)
                return shortest_queue

        policies = {model: named(name) for model, name in choosing.policies.items()}
        self.dispatcher.choose_by(named(choosing.policy), policies)

    def _litestar(self, service: Service, cors: CORSConfig | None) -> Litestar:
        return _Litestar(
            route_handlers=[
                *(route.handler() for route in self.hot.values()),
                *((embeddings_route(service), *model_handlers(self.registry)) if self.config.api is not None else ()),
                *cluster_handlers(self.registry),
                *lifecycle_handlers(
                    self.operations,
                    self._ask_to_drain,
                    drain_s=self.config.server.drain_s,
                    max_body_bytes=service.max_body_bytes,
                ),
                *alias_handlers(self.operations, service.max_body_bytes),
                *decision_handlers(self.dispatcher),
                *health_handlers(self.registry, lambda: self._ready, lambda: self._complaint),
                self.metrics.handler(self._siblings),
                schema_handler(),
                *(handler for side in self._fastchat_if_any for handler in side.handlers),
            ],
            guards=[self.door.guard],
            exception_handlers=dict(EXCEPTION_HANDLERS),
            response_class=IdentifiedResponse,
            cors_config=cors,
            openapi_config=None,
            lifespan=[self._running],
            request_max_body_size=service.max_body_bytes,
            logging_config=None,
        )

    @asynccontextmanager
    async def _running(self, _: Litestar) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            await self.crew.open(tasks)
            sides = self._fastchat_if_any
            for run in (*(side.run for side in sides), self.watchdog.run, self.waking.run, self.operations.run):
                await tasks.start(run)
            try:
                yield
            finally:
                self.watchdog.stop()
            self.expel()
            for stop in (self.operations.stop, self.crew.stop, self.waking.stop, *(side.stop for side in sides)):
                stop()

    def _recipe(self, config: Config, index: int) -> Recipe:
        return Recipe(config.worker[index], partial(make_worker, config, index, self._plugins, self._progress))

    def _recipe_of(self, table: Mapping[str, Any]) -> Recipe:
        """Of a worker that comes while we run: a ``[[worker]]`` in JSON. Raises `ConfigError`."""
        index = len(self.config.worker)
        if self.links is not None and self.links.node is None:  # whatever else is wrong with it
            raise self.config.error(
                ("worker", index),
                "This process was started without workers, so nobody comes here for them. Load it in the process of "
                "a worker that is listed: fastchat-serve models load … --beside WORKER_ID, in HTTP ?beside=WORKER_ID.",
            )
        config = config_with_worker(self.config, table)
        check_worker(config, index, self._plugins)
        return self._recipe(config, index)

    def _ask_to_drain(self) -> None:
        """All processes behind our port, as if a supervisor did."""
        self.asked_to_drain = True
        leads_us = self._siblings is not None and os.getppid() == self._parent
        os.kill(self._parent if leads_us else os.getpid(), signal.SIGTERM)

    def _list(self, worker: OwnWorker) -> None:
        """It has come, or calls itself otherwise than before."""
        self.registry.add(worker)
        self._announce()

    def _unlist(self, worker_id: str) -> None:
        self.registry.remove(worker_id, for_good=True)
        self._announce()

    def _announce(self) -> None:
        """Tell other processes of the workers here."""
        if self.links is not None and self.links.node is not None:
            self.links.node.announce()


class _Litestar(Litestar):
    """Litestar without its adapters for pydantic and attrs, which it imports wherever they are installed."""

    @staticmethod
    def _get_default_plugins(plugins: list[PluginProtocol]) -> list[PluginProtocol]:
        return [*plugins, MsgspecDIPlugin()]


def create_app(config: Config) -> Litestar:
    """The ASGI app of `config`, for other servers than ours. Raises `StartupError`.

    It has to have all roles: links between processes need our own server.
    """
    if config.controller is None or config.api is None:
        raise StartupError(
            "Only fastchat-serve itself serves roles that are split: ASGI has no links between processes."
        )
    return Application(config).asgi


def takes_part(config: Config) -> bool:
    """Whether this process has, or may have, links to others."""
    elsewhere = any(worker.controllers for worker in config.worker) or (config.api and config.api.controllers)
    return config.cluster.token is not None or bool(elsewhere) or config.controller is None or config.api is None


def _keys(config: Config) -> Keys:
    """Of clients; a process without an API has but one kind of client, operators."""
    return Keys(key.reveal() for key in config.api.keys) if config.api is not None else _token(config)


def _token(config: Config) -> Token:
    """Of the other processes of the cluster."""
    token = config.cluster.token
    return Token(() if token is None else (token.reveal(),))


def _hosts(config: Config) -> Hosts | None:
    """Names to answer to; None: all. Beyond loopback keys guard the door, and names are not known."""
    server = config.server
    if "*" in server.allowed_hosts or (not server.allowed_hosts and not is_loopback(server.host)):
        return None
    return Hosts(server.allowed_hosts or ("localhost", "127.0.0.1", "::1", server.host))


def _cors(origins: tuple[str, ...]) -> CORSConfig | None:
    if not origins:
        return None
    return CORSConfig(
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
        expose_headers=["X-Request-Id"],
    )
