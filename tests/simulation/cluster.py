"""A whole cluster on virtual time: real nodes, controllers and APIs, with a network between them that a test can hurt.

What is not here is HTTP: a dialled path leads straight to whoever takes links there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from random import Random
from typing import Any

import anyio

from fastchat_serve.controller.admission import Admission
from fastchat_serve.controller.dispatcher import Dispatcher
from fastchat_serve.controller.fleet import Fleet
from fastchat_serve.controller.policies import POLICIES
from fastchat_serve.controller.registry import Registry
from fastchat_serve.controller.table import Table
from fastchat_serve.controller.watchers import Watchers
from fastchat_serve.controller.watching import Watching
from fastchat_serve.engine import Chunk, GenerateRequest
from fastchat_serve.engines.echo import EchoEngine, EchoOptions
from fastchat_serve.errors import ServeError
from fastchat_serve.protocol.watch import Choosing, Watch
from fastchat_serve.simulation.loop import SimulatedLoop, on
from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.dial import CALL, NODE, UPGRADE, WATCH, Credentials
from fastchat_serve.worker.heartbeat import Membership
from fastchat_serve.worker.local import LocalWorker
from fastchat_serve.worker.node import Node
from tests.sinks import a_request

__all__ = ["Api", "Cluster", "Controller", "Ledger", "WorkerHost"]

PORT = 80
TOKEN_MS = 40
NOBODY = Credentials()


class Process:
    """One process of the cluster, on a host of its own.

    Attributes:
        name: Of the host that its code runs on.
        address: Where it is dialled.
    """

    def __init__(self, loop: SimulatedLoop, name: str, address: str) -> None:
        self.loop, self.name, self.address = loop, name, address
        self.alive, self.was_frozen = True, False
        self._doors: Mapping[str, Callable[[], asyncio.Protocol]] = {}

    @property
    def url(self) -> str:
        return f"http://{self.address}:{PORT}"

    async def start(self) -> None:
        """Begin to live; returns when it listens."""
        listening = asyncio.Event()
        with on(self.name):
            self._task = asyncio.create_task(self._live(listening))
        await listening.wait()

    async def _live(self, listening: asyncio.Event) -> None:
        async with anyio.create_task_group() as tasks:
            parts = await self._open(tasks)
            await self.loop.create_server(partial(Door, self._doors), self.address, PORT)
            listening.set()
            for part in parts:
                tasks.start_soon(part)
            await anyio.sleep_forever()

    async def _open(self, tasks: anyio.abc.TaskGroup) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """Make its parts, and say what doors there are. What it returns runs once it listens."""
        raise NotImplementedError


class Door(asyncio.Protocol):
    """Hands a connection over to whoever takes links at the path that it asks for."""

    def __init__(self, doors: Mapping[str, Callable[[], asyncio.Protocol]]) -> None:
        self._doors, self._head = doors, b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._head += data
        head, found, rest = self._head.partition(b"\r\n\r\n")
        if not found:
            return
        door = self._doors.get(head.split(b" ")[1].decode())
        if door is None:
            self._transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            self._transport.close()
            return
        self._transport.write(f"HTTP/1.1 101 Switching Protocols\r\nupgrade: {UPGRADE}\r\n\r\n".encode())
        link = door()
        self._transport.set_protocol(link)
        link.connection_made(self._transport)
        if rest:
            link.data_received(rest)  # type: ignore[attr-defined]


class WorkerHost(Process):
    """A node with one echo, which makes a token every `TOKEN_MS`."""

    def __init__(self, loop: SimulatedLoop, name: str, controllers: list[str], *, out: bool) -> None:
        super().__init__(loop, name, name)
        self._controllers, self._out = controllers, out
        engine = EchoEngine(EchoOptions(split="byte", delay_ms=TOKEN_MS))
        self.worker = LocalWorker(engine, names=("m",), concurrency=4, queue=4)
        self.worker.id = f"worker of {name}"

    async def _open(self, tasks: anyio.abc.TaskGroup) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        node = Node({self.worker.id: self.worker})
        node.id = f"node {self.name}"
        await tasks.start(self.worker.run)
        await tasks.start(node.run)
        address = (lambda local: "") if self._out else (lambda local: self.url)
        self._doors = {} if self._out else {CALL: node.host}
        return [Membership(node, self._controllers, address, NOBODY).run]


class Controller(Process):
    """A controller and nothing else."""

    async def _open(self, tasks: anyio.abc.TaskGroup) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        self.registry, table = Registry(), Table()
        fleet = Fleet(self.registry)
        admission = Admission(fleet, table, NOBODY)
        watchers = Watchers(table, Choosing("shortest_queue", {}), admission.name_callers)
        self._doors = {NODE: admission.accept, WATCH: watchers.accept}
        await tasks.start(fleet.run)
        await tasks.start(admission.run)
        return []


class Api(Process):
    """An API, and its clients."""

    def __init__(self, loop: SimulatedLoop, name: str, controllers: list[str], policy: str, rng: Random) -> None:
        super().__init__(loop, name, name)
        self._controllers = controllers
        self.registry = Registry()
        self.dispatcher = Dispatcher(self.registry, POLICIES[policy], rng, clock=loop.time)

    async def _open(self, tasks: anyio.abc.TaskGroup) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        fleet = Fleet(self.registry)
        admission = Admission(fleet, None, NOBODY)
        watch = Watch(self.url)
        watching = Watching(fleet, self._controllers, lambda: watch, NOBODY, lambda choosing: None)
        self.registry.is_learning = lambda: watching.is_learning
        self._doors = {NODE: admission.accept}
        await tasks.start(fleet.run)
        await tasks.start(admission.run)
        return [watching.run]

    def ready(self) -> int:
        """How many workers are ready as this process has it."""
        return sum(worker.state is WorkerState.READY for worker in self.registry.serving("m"))

    def ask(self, ledger: Ledger, request: GenerateRequest) -> Ledger.Entry:
        """As a client of this process."""
        entry = ledger.open(self, request)
        with on(self.name):
            try:
                entry.handle = self.dispatcher.start("m", request, entry)
            except ServeError as error:
                entry.end(error)
        return entry


class Ledger:
    """What was asked, and what came of it: it knows nothing of how."""

    class Entry:
        """One request; the sink of its answer."""

        def __init__(self, api: Api, request: GenerateRequest, asked_at: float) -> None:
            self.api, self.request, self.asked_at = api, request, asked_at
            self.handle: Any = None
            self.chunks: list[Chunk] = []
            self.ends: list[tuple[float, Exception | None]] = []
            self.left = False

        def push(self, chunk: Chunk) -> None:
            assert not self.ends, f"{self.request.id}: a chunk came after the end"
            self.chunks.append(chunk)

        def end(self, error: Exception | None) -> None:
            self.ends.append((self.api.loop.time(), error))

        def leave(self) -> None:
            """The client goes."""
            self.left = True
            if self.handle is not None and not self.ends:
                with on(self.api.name):
                    self.handle.abort()

    def __init__(self) -> None:
        self.entries: list[Ledger.Entry] = []

    def open(self, api: Api, request: GenerateRequest) -> Ledger.Entry:
        entry = Ledger.Entry(api, request, api.loop.time())
        self.entries.append(entry)
        return entry

    def check(self, text: str, slack_s: float) -> None:
        """Raises `AssertionError` for what must not be, of all whose API process lives."""
        for entry in self.entries:
            if not entry.api.alive:
                continue
            name = entry.request.id
            said = "".join(chunk.text for chunk in entry.chunks)
            tokens = [token for chunk in entry.chunks for token in chunk.token_ids]
            usages = [chunk.usage for chunk in entry.chunks if chunk.usage is not None]
            assert len(entry.ends) == 1, f"{name}: {len(entry.ends)} ends after {said!r} (G1, G2)"
            assert text.startswith(said), f"{name}: {said!r} (G3)"
            assert tokens == list(text.encode())[: len(tokens)], f"{name}: tokens {tokens} (G3)"
            ((ended_at, error),) = entry.ends
            if error is None and not entry.left:
                assert said == text, f"{name}: {said!r} without an error (G1)"
                assert len(usages) == 1, f"{name}: {len(usages)} usage records"
                assert usages[0].completion_tokens == len(text.encode()), f"{name}: {usages[0]}"
            if error is not None:
                assert isinstance(error, ServeError), f"{name}: {error!r}"
            if entry.request.timeout_s is not None and not entry.api.was_frozen:
                late_s = ended_at - entry.asked_at - entry.request.timeout_s
                assert late_s <= slack_s, f"{name}: {late_s} s after its deadline (G12)"


class Cluster:
    """Processes of all roles, and what can become of them.

    Args:
        rng: Of everything that chance decides.
    """

    def __init__(self, loop: SimulatedLoop, rng: Random, *, controllers: int, apis: int, workers: int) -> None:
        self.loop, self._random = loop, rng
        self._counts = controllers, apis, workers
        self._urls = [f"http://c{number}:{PORT}" for number in range(controllers)]
        self.controllers: list[Controller] = []
        self.apis: list[Api] = []
        self.workers: list[WorkerHost] = []
        self.frozen: list[Process] = []
        self.cuts: list[tuple[str, str]] = []
        """Ways between addresses that were cut."""
        self._born = 0

    async def start(self) -> None:
        """In any order."""
        controllers, apis, workers = self._counts
        births = [partial(self.new_controller, number) for number in range(controllers)]
        births += [self.new_api] * apis + [self.new_worker] * workers  # type: ignore[list-item]
        self._random.shuffle(births)
        for birth in births:
            await birth()

    async def new_controller(self, number: int) -> None:
        """At the address that all others know."""
        self._born += 1
        controller = Controller(self.loop, f"c{number}.{self._born}", f"c{number}")
        self.controllers.append(controller)
        await controller.start()

    async def new_api(self) -> None:
        self._born += 1
        policy = self._random.choice(sorted(POLICIES))
        self.apis.append(Api(self.loop, f"a{self._born}", self._urls, policy, Random(self._random.random())))
        await self.apis[-1].start()

    async def new_worker(self) -> None:
        self._born += 1
        out = self._random.random() < 0.25
        self.workers.append(WorkerHost(self.loop, f"w{self._born}", self._urls, out=out))
        await self.workers[-1].start()

    @property
    def processes(self) -> list[Process]:
        """Those that live."""
        return [each for each in (*self.controllers, *self.apis, *self.workers) if each.alive]

    def kill(self, process: Process) -> None:
        process.alive = False
        self.loop.kill(process.name)
        self.loop.network.lose(process.address)

    def freeze(self, process: Process) -> None:
        process.was_frozen = True
        self.frozen.append(process)
        self.loop.freeze(process.name)

    def thaw_all(self) -> None:
        for process in self.frozen:
            if process.alive:
                self.loop.thaw(process.name)
        self.frozen.clear()

    def request(self, number: int, text: str) -> GenerateRequest:
        timeout_s = self._random.choice([None, None, 1.0, 30.0])
        temperature = self._random.choice([0.0, 1.0])
        session = self._random.choice(["", "one", "other"])
        return a_request(
            text, id=f"r{number}", seed=number, temperature=temperature, timeout_s=timeout_s, session=session
        )
