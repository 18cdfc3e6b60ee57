"""A proxy between two processes that does to their connections what bad networks do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import anyio

__all__ = ["Proxy", "proxied"]


class Proxy:
    """What `proxied` yields: what comes to `url` goes on, and what answers there comes back.

    Attributes:
        delay_s: How long each piece takes, in either direction, between two bounds. None overtakes another.
        drip: Bytes that are passed on at a time; None: as they come.
        spoil: Changes pieces that come back, until it has changed one.
        connections: How many there were.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.url = ""
        self.delay_s = (0.0, 0.0)
        self.drip: int | None = None
        self.spoil: Callable[[bytes], bytes] | None = None
        self.connections = 0
        self._moving = asyncio.Event()
        self._moving.set()
        self._open: set[asyncio.StreamWriter] = set()
        self._random = random.Random(11)

    def stall(self) -> None:
        """Nothing moves from now on, in either direction, and nothing is closed."""
        self._moving.clear()

    def go_on(self) -> None:
        self._moving.set()

    def cut(self) -> None:
        """All connections break."""
        for writer in self._open:
            writer.transport.abort()

    async def join(self, near_reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        """Pass on what one connection has to say until either end closes."""
        self.connections += 1
        await self._moving.wait()
        try:
            far_reader, far = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            near.transport.abort()
            return
        both = {near, far}
        self._open |= both
        try:
            async with anyio.create_task_group() as tasks:
                for reader, writer, comes_back in ((near_reader, far, False), (far_reader, near, True)):
                    tasks.start_soon(self._pass_on, reader, writer, comes_back, tasks.cancel_scope)
        finally:
            self._open -= both
            for writer in both:
                writer.transport.abort()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, comes_back: bool, over: anyio.CancelScope
    ) -> None:
        clock = asyncio.get_running_loop().time
        arriving = asyncio.Queue[tuple[float, bytes]]()

        async def read() -> None:
            due = 0.0
            with suppress(OSError):
                while data := await reader.read(self.drip or 1 << 16):
                    due = max(due, clock() + self._random.uniform(*self.delay_s))
                    arriving.put_nowait((due, data))
            arriving.put_nowait((due, b""))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            while True:
                due, data = await arriving.get()
                await anyio.sleep_until(due)
                await self._moving.wait()
                if not data:
                    break
                writer.write(self._spoilt(data) if comes_back else data)
            over.cancel()

    def _spoilt(self, data: bytes) -> bytes:
        if self.spoil is None:
            return data
        spoilt = self.spoil(data)
        if spoilt != data:
            self.spoil = None
        return spoilt


@asynccontextmanager
async def proxied(port: int) -> AsyncIterator[Proxy]:
    """A proxy to `port` of this host."""
    proxy = Proxy(port)
    server = await asyncio.start_server(proxy.join, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        proxy.go_on()
        proxy.cut()
