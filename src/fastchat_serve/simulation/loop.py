"""An event loop under virtual time: code with timers and connections runs on it unchanged, and one seed is one run.

Time stands still while something can be done, and then jumps to the next timer. Connections are in memory
(`network.py`). Code can be told to run on a host (`on`); hosts can be frozen, as by SIGSTOP, and killed, as by SIGKILL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from random import Random
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

import anyio

from fastchat_serve.simulation.network import Network

__all__ = ["HOST", "SimulatedLoop", "Stuck", "on", "run"]

HOST: Final[ContextVar[str]] = ContextVar("HOST", default="")
"""Where the code at hand runs. What it starts runs there as well."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Stuck(RuntimeError):
    """Everybody waits, and nothing is planned that could wake anybody."""


@contextmanager
def on(host: str) -> Iterator[None]:
    """What is started within runs on `host`."""
    token = HOST.set(host)
    try:
        yield
    finally:
        HOST.reset(token)


def run(main: Callable[[SimulatedLoop], Coroutine[Any, Any, T]], *, seed: int = 0) -> T:
    """Run ``main(loop)`` to its end on a loop of its own. What is still running then is cancelled."""
    loop = SimulatedLoop(seed)

    async def whole() -> T:
        try:
            return await main(loop)
        finally:
            loop.wake_all()

    return anyio.run(whole, backend_options={"loop_factory": lambda: loop})


class SimulatedLoop(asyncio.BaseEventLoop):
    """See the module.

    Attributes:
        network: Between the hosts.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self  # of the base class: it is asked to wait, and that is all
        self._clock_resolution = 1e-6  # more than a float of many years' seconds can lose: else time stood still
        self._held: dict[str, list[_Guarded]] = {}
        self.network = Network(self, Random(f"network {seed}"))

    # ------------------------------------------------------------------------------------- hosts

    @property
    def host(self) -> str:
        """Where the code at hand runs."""
        return HOST.get()

    def freeze(self, host: str) -> None:
        """Nothing happens there until `thaw`; what is due meanwhile happens then."""
        self._held.setdefault(host, [])

    def thaw(self, host: str) -> None:
        for each in self._held.pop(host, ()):
            if not each.handle.cancelled():
                super().call_soon(each, context=each.context)

    def kill(self, host: str) -> None:
        """Nothing happens there any more, and its connections are gone."""
        self.freeze(host)
        self.network.lose(host)

    def wake_all(self) -> None:
        """Let all hosts go on, the killed ones too: so that what runs there can be cancelled."""
        for host in tuple(self._held):
            self.thaw(host)

    def hold(self, host: str, call: _Guarded) -> bool:
        """Whether the host is frozen; then `call` happens when it is not any more."""
        held = self._held.get(host)
        if held is None:
            return False
        held.append(call)
        return True

    # ---------------------------------------------------------------------------------- asyncio's

    def time(self) -> float:
        return self._now

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        call = _Guarded(self, callback, args, context)
        call.handle = super().call_soon(call, context=context)
        return call.handle

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        call = _Guarded(self, callback, args, context)
        call.handle = timer = super().call_at(when, call, context=context)
        return timer

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        """Hosts are known by their names, which stand for one address each."""
        return [(_AF_INET, _SOCK_STREAM, 6, "", (str(host), int(port)))]

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **more: Any) -> Any:
        _require_plain(more)
        return await self.network.connect(protocol_factory, str(host), int(port))

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **more: Any) -> Any:
        _require_plain(more)
        return self.network.listen(protocol_factory, str(host), int(port))

    def select(self, timeout: float | None) -> list[object]:
        """Of the selector: instead of waiting, go on to when the next timer is due."""
        if timeout is None:
            raise Stuck("everybody waits, and nothing is planned")
        self._now += max(0.0, timeout)
        return []

    def _process_events(self, event_list: list[object]) -> None:
        """There are none: nobody else is there."""

    def _write_to_self(self) -> None:
        """No thread of another kind wakes it."""


_AF_INET, _SOCK_STREAM = 2, 1


class _Guarded:
    """A callback that happens only while its host is not frozen."""

    __slots__ = ("_args", "_callback", "_host", "_loop", "context", "handle")

    handle: asyncio.Handle

    def __init__(
        self, loop: SimulatedLoop, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> None:
        self._loop, self._callback, self._args, self.context = loop, callback, args, context
        self._host = HOST.get() if context is None else context.get(HOST, "")

    def __call__(self) -> None:
        if not self._loop.hold(self._host, self):
            self._callback(*self._args)


def _require_plain(more: dict[str, Any]) -> None:
    if more.get("ssl") is not None:
        raise NotImplementedError("there is no TLS in simulated networks")
