"""HTTP by hand: a client that sees every byte, keeps its connection, and can be as rude as it likes."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from fastchat_serve.server import HttpServer

__all__ = ["Connection", "Reply", "connected", "events", "expect_error", "get", "post"]

PATIENCE_S = 20.0
"""No wait of a test is longer than this."""


class Reply(Struct):
    """One HTTP reply. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One connection, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def request(self, data: bytes) -> Reply:
        self.send(data)
        return await self.reply()

    async def reply(self) -> Reply:
        """The next reply, whole."""
        async with asyncio.timeout(PATIENCE_S):
            status, headers = await self.head()
            parts = [part async for part in self._body(headers)]
        return Reply(status, headers, b"".join(parts))

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers; the body is left for `piece`."""
        async with asyncio.timeout(PATIENCE_S):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines[1:] if line)
        return int(lines[0].split()[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def piece(self) -> bytes:
        """One chunk of a chunked body; empty at its end."""
        async with asyncio.timeout(PATIENCE_S):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def closed(self) -> bytes:
        """What still comes until the server closes."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read()

    async def closed_by_reset_or_end(self) -> bytes:
        """What still comes until the server closes, be it with RST, as it may while we still send."""
        received = b""
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionResetError, BrokenPipeError):
                while data := await self.reader.read(2**16):
                    received += data
        return received

    def reset(self) -> None:
        """Leave with RST instead of FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def _body(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        if headers.get("transfer-encoding") == "chunked":
            while part := await self.piece():
                yield part
        else:
            yield await self.reader.readexactly(int(headers.get("content-length", 0)))


@asynccontextmanager
async def connected(server: HttpServer | str, receive_buffer: int | None = None) -> AsyncIterator[Connection]:
    """A connection to `server`, closed at the end. `receive_buffer`: bytes that the kernel keeps unread."""
    url = urlsplit(server if isinstance(server, str) else server.url)
    assert url.hostname is not None
    sock = socket.socket(proto=socket.IPPROTO_TCP)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (url.hostname, url.port))
    except OSError:
        sock.close()
        raise
    reader, writer = await asyncio.open_connection(sock=sock, limit=2**16 if receive_buffer is None else receive_buffer)
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


def post(path: str, body: bytes | dict[str, Any], **headers: str) -> bytes:
    """A POST of JSON. Headers: ``content_type="text/plain"``; an empty value leaves one out."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    every = {"host": "127.0.0.1", "content-type": "application/json", "content-length": str(len(data))}
    every |= {name.replace("_", "-"): value for name, value in headers.items()}
    return _request("POST", path, every) + data


def get(path: str, method: str = "GET", **headers: str) -> bytes:
    """A request without a body."""
    every = {"host": "127.0.0.1"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return _request(method, path, every)


def _request(method: str, path: str, headers: dict[str, str]) -> bytes:
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1")


def events(body: bytes) -> list[Any]:
    """The data of all server-sent events, parsed; ``[DONE]`` as that string."""
    assert body.endswith(b"\n\n"), body[-100:]
    lines = body.decode().removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines), lines
    return ["[DONE]" if line == "data: [DONE]" else json.loads(line.removeprefix("data: ")) for line in lines]


def expect_error(reply: Reply, status: int, code: str | None = None) -> dict[str, Any]:
    """Assert that `reply` is an error in OpenAI's shape; returns what is inside."""
    assert reply.status == status, (reply.status, reply.body[:500])
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    (key, error), *others = reply.json().items()
    assert (key, others) == ("error", [])
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert len(error["message"]) < 1000
    if code is not None:
        assert error["code"] == code
    return dict(error)
