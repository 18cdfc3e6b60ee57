"""A proxy that keeps what passes through it, byte for byte: one exchange after the other on each connection."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

from msgspec import Struct

__all__ = ["Exchange", "Recorder"]


class Exchange(Struct, frozen=True):
    """Bytes as they were, written as Latin-1."""

    request: str
    response: str


class Recorder:
    """Attributes:
    exchanges: What passed, in order.
    """

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    @contextlib.asynccontextmanager
    async def between(self, port: int, target: int) -> AsyncIterator[None]:
        """Listen at `port` of this machine and pass everything on to `target`."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                there, to_there = await asyncio.open_connection("127.0.0.1", target)
            except OSError:  # it does not listen yet
                writer.close()
                return
            try:
                while request := await _message(reader):
                    to_there.write(request)
                    response = await _message(there)
                    self.exchanges.append(Exchange(request.decode("latin-1"), response.decode("latin-1")))
                    writer.write(response)
            finally:
                to_there.close()
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", port)
        async with server:
            yield


async def _message(reader: asyncio.StreamReader) -> bytes:
    """A whole request or response; empty if there is none."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    if length:
        return head + await reader.readexactly(int(length[1]))
    if re.search(rb"transfer-encoding: *chunked", head, re.IGNORECASE):
        return head + await reader.readuntil(b"\r\n0\r\n\r\n")
    return head
