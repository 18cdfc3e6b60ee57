"""Connections in memory between simulated hosts: in order and complete, as TCP's are, with seeded delays.

What is written leaves in pieces, each after a delay of its own, and none overtakes another. A way that is cut holds
everything back until it is mended; nothing is lost on it, unless the connection is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from fastchat_serve.simulation.loop import SimulatedLoop

__all__ = ["Network"]

_HIGH_BYTES: Final = 64 * 1024
_LOW_BYTES: Final = 16 * 1024
_NEVER_TOGETHER_S: Final = 1e-7
"""Between two arrivals, which timers would otherwise put in any order."""


class Network:
    """See the module.

    Attributes:
        delay_s: Of a piece: at least, and at most.
        split: The chance that a piece arrives as two.
    """

    def __init__(self, loop: SimulatedLoop, random: Random) -> None:
        self.delay_s = (0.0002, 0.002)
        self.split = 0.2
        self._loop, self._random = loop, random
        self._listeners: dict[tuple[str, int], _Listener] = {}
        self._ends: dict[_End, None] = {}
        self._cut: set[frozenset[str]] = set()
        self._mended = asyncio.Event()
        self._ports = count(49_152)

    # ------------------------------------------------------------------------------------- faults

    def cut(self, one: str, other: str) -> None:
        """Nothing gets from one host to the other until `mend`."""
        self._cut.add(frozenset((one, other)))

    def mend(self, one: str, other: str) -> None:
        self._cut.discard(frozenset((one, other)))
        self._mended.set()
        self._mended = asyncio.Event()
        for end in tuple(self._ends):
            end.send_held()

    def is_cut(self, one: str, other: str) -> bool:
        return frozenset((one, other)) in self._cut

    def reset(self, one: str, other: str) -> None:
        """All connections between two hosts break."""
        for end in tuple(self._ends):
            if {end.host, end.peer.host} == {one, other}:
                end.break_off()

    def lose(self, host: str) -> None:
        """It is gone, with all its connections."""
        for address in [address for address in self._listeners if address[0] == host]:
            del self._listeners[address]
        for end in tuple(self._ends):
            if end.peer.host == host:
                end.break_off()
            if end.host == host:
                end.vanish()

    # -------------------------------------------------------------------------------- connections

    def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> _Listener:
        address = (host, port or next(self._ports))
        if address in self._listeners:
            raise OSError(98, f"{address} is in use")
        listener = self._listeners[address] = _Listener(self, address, factory, copy_context())
        return listener

    def forget(self, address: tuple[str, int]) -> None:
        self._listeners.pop(address, None)

    async def connect(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Raises `ConnectionRefusedError`."""
        here = self._loop.host
        await asyncio.sleep(self.delay() + self.delay())
        while self.is_cut(here, host):
            await self._mended.wait()
        listener = self._listeners.get((host, port))
        if listener is None:
            raise ConnectionRefusedError(111, f"nothing listens at {host}:{port}")
        ours = _End(self, self._loop, (here, next(self._ports)), copy_context())
        theirs = _End(self, self._loop, (host, port), listener.context)
        ours.peer, theirs.peer = theirs, ours
        self._ends[ours] = self._ends[theirs] = None
        theirs.begin(listener.context.copy().run(listener.factory))
        protocol = factory()
        ours.begin(protocol)
        await asyncio.sleep(0)  # so that it is begun when it is handed over
        return ours, protocol

    def delay(self) -> float:
        return self._random.uniform(*self.delay_s)

    def pieces(self, data: bytes) -> list[bytes]:
        if len(data) < 2 or self._random.random() >= self.split:
            return [data]
        place = self._random.randrange(1, len(data))
        return [data[:place], data[place:]]

    def discard(self, end: _End) -> None:
        self._ends.pop(end, None)


class _Listener:
    """Takes connections."""

    sockets: tuple[Any, ...] = ()

    def __init__(
        self, network: Network, address: tuple[str, int], factory: Callable[[], asyncio.BaseProtocol], context: Context
    ) -> None:
        self._network, self.address, self.factory, self.context = network, address, factory, context

    def close(self) -> None:
        self._network.forget(self.address)

    async def wait_closed(self) -> None:
        """It is at once."""


class _End(asyncio.Transport):
    """One end of a connection."""

    peer: _End

    def __init__(self, network: Network, loop: SimulatedLoop, address: tuple[str, int], context: Context) -> None:
        super().__init__()
        self.host, self._address, self._context = address[0], address, context
        self._network, self._loop = network, loop
        self._protocol: Any = None
        self._arrives_at = 0.0
        """When what was sent last arrives."""
        self._on_its_way = 0
        self._held: deque[bytes | None] = deque()
        """By a way that is cut; None: that it is closed."""
        self._unread: deque[bytes | None] = deque()
        self._reading = True
        self._closing = self._writing_paused = self._lost = False

    def begin(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        self._soon(protocol.connection_made, self)

    # --------------------------------------------------------------------------------- the way

    def send_held(self) -> None:
        held, self._held = self._held, deque()
        for data in held:
            self._send(data)

    def break_off(self) -> None:
        """The connection is broken: this end hears of it; what was on its way is lost."""
        self._held.clear()
        self._soon(self._lose, ConnectionResetError(104, "Connection reset by peer"))

    def vanish(self) -> None:
        """Its process is gone, and hears of nothing."""
        self._lost = self._closing = True
        self._held.clear()
        self._network.discard(self)

    def _send(self, data: bytes | None) -> None:
        if self._held or self._network.is_cut(self.host, self.peer.host):
            self._held.append(data)
            return
        for piece in [None] if data is None else self._network.pieces(data):
            due = self._loop.time() + self._network.delay()
            self._arrives_at = max(due, self._arrives_at + _NEVER_TOGETHER_S)
            self._loop.call_at(self._arrives_at, self.peer.arrive, piece, context=self.peer._context)

    def arrive(self, data: bytes | None) -> None:
        """From the other end; None: it has closed."""
        if data is not None:
            self.peer.arrived(len(data))
        if self._lost:
            return
        self._unread.append(data)
        self._read()

    def arrived(self, size: int) -> None:
        """So much of what was written here is there."""
        self._on_its_way -= size
        if self._writing_paused and self._on_its_way <= _LOW_BYTES:
            self._writing_paused = False
            self._soon(self._protocol.resume_writing)

    def _read(self) -> None:
        while self._reading and self._unread and not self._lost:
            data = self._unread.popleft()
            if data is not None:
                self._protocol.data_received(data)
            elif not self._protocol.eof_received():
                self._closing = True
                self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = self._closing = True
            self._network.discard(self)
            self._protocol.connection_lost(error)

    def _soon(self, callback: Callable[..., object], *args: Any) -> None:
        self._loop.call_soon(callback, *args, context=self._context)

    # ------------------------------------------------------------------------------- asyncio's

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or not data:
            return
        self._on_its_way += len(data)
        self._send(bytes(data))
        if self._on_its_way > _HIGH_BYTES and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._send(None)
            self._soon(self._lose, None)

    def abort(self) -> None:
        if not self._lost:
            self._closing = True
            self._held.clear()
            self.peer.break_off()
            self._soon(self._lose, None)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._soon(self._read)

    def is_reading(self) -> bool:
        return self._reading

    def get_write_buffer_size(self) -> int:
        return self._on_its_way

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """They are as they are."""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        found: asyncio.BaseProtocol = self._protocol
        return found

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": self._address, "peername": self.peer._address}.get(name, default)
