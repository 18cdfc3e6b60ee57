"""Processes that speak as FastChat's do: with recorded bytes, or with what a test has them say."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "TRANSCRIPTS",
    "Actor",
    "Asked",
    "Line",
    "Reply",
    "parsed",
    "replay",
    "replies",
    "said",
    "streamed",
    "transcript",
]

TRANSCRIPTS = Path(__file__).parent / "transcripts"


class Asked(NamedTuple):
    """One request."""

    method: str
    path: str
    body: Any
    """Decoded; None if there is none."""


Reply = bytes | Iterable[bytes | asyncio.Event | None]
"""All bytes; or in pieces, with events to wait for in between, and None where the connection breaks."""

Line = Callable[[Asked], Reply]


class Actor:
    """A server at `url` that answers each request with what `line` says.

    Attributes:
        asked: All requests so far.
        gone: Set when a client has closed a connection.
    """

    def __init__(self, line: Line) -> None:
        self.line = line
        self.asked: list[Asked] = []
        self.gone = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked_for(self, path: str) -> list[Any]:
        """The bodies of all requests for `path`."""
        return [asked.body for asked in self.asked if asked.path == path]

    @contextlib.asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[None]:
        """Until left; then all connections are cut."""
        connections: set[asyncio.StreamWriter] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.add(writer)
            try:
                while (asked := await _request(reader)) is not None:
                    self.asked.append(asked)
                    if not await self._reply(self.line(asked), reader, writer):
                        return
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                self.gone.set()
                connections.discard(writer)
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            for writer in tuple(connections):
                writer.close()

    @staticmethod
    async def _reply(reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection is still to be used."""
        for piece in (reply,) if isinstance(reply, bytes) else reply:
            if piece is None:
                return False
            if isinstance(piece, asyncio.Event):
                waiting = asyncio.ensure_future(piece.wait())
                leaving = asyncio.ensure_future(reader.read(1))
                await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
                if leaving.done():
                    waiting.cancel()
                    return False
                leaving.cancel()
                continue
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        return True


async def _request(reader: asyncio.StreamReader) -> Asked | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    method, path, _ = head.split(" ", 2)
    return Asked(method, path, json.loads(body) if body else None)


def said(value: Any, status: str = "200 OK") -> bytes:
    """A JSON reply, as uvicorn writes it."""
    body = json.dumps(value, separators=(",", ":")).encode()
    head = f"HTTP/1.1 {status}\r\nserver: uvicorn\r\ncontent-length: {len(body)}\r\ncontent-type: application/json"
    return head.encode() + b"\r\n\r\n" + body


def streamed(*messages: dict[str, Any] | asyncio.Event | bytes | None) -> Iterable[bytes | asyncio.Event | None]:
    """A worker's stream. Dictionaries are messages; bytes stand for themselves."""
    yield b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ntransfer-encoding: chunked\r\n\r\n"
    for message in messages:
        if isinstance(message, dict):
            message = json.dumps({"error_code": 0, "finish_reason": None} | message).encode() + b"\0"
        yield message if not isinstance(message, bytes) else b"%x\r\n%s\r\n" % (len(message), message)
    yield b"0\r\n\r\n"


VICUNA = {
    "name": "made-up",
    "system_template": "{system_message}",
    "system_message": "Sys.",
    "roles": ["USER", "ASSISTANT"],
    "messages": [],
    "offset": 0,
    "sep_style": 2,
    "sep": " ",
    "sep2": "</s>",
    "stop_str": None,
    "stop_token_ids": None,
}


def replies(*names: str, **lines: Any) -> Line:
    """What a worker with these models answers. `lines`: other answers, or functions that give them, by path."""
    usual: dict[str, Any] = {
        "worker_get_status": said({"model_names": list(names), "speed": 1, "queue_length": 0}),
        "model_details": said({"context_length": 1000}),
        "worker_get_conv_template": said({"conv": VICUNA}),
        "count_token": lambda asked: said({"count": len(asked.body["prompt"].split()), "error_code": 0}),
        "worker_get_embeddings": said({"detail": "Method Not Allowed"}, "405 Method Not Allowed"),
    } | lines

    def line(asked: Asked) -> Reply:
        answer = usual.get(asked.path.removeprefix("/"), said({"detail": "Not Found"}, "404 Not Found"))
        reply: Reply = answer(asked) if callable(answer) else answer
        return reply

    return line


def transcript(name: str) -> list[tuple[bytes, bytes]]:
    """Requests and responses that were recorded."""
    lines = [json.loads(line) for line in (TRANSCRIPTS / f"{name}.jsonl").read_text().splitlines()]
    return [(line["request"].encode("latin-1"), line["response"].encode("latin-1")) for line in lines]


def parsed(request: bytes) -> Asked:
    head, _, body = request.partition(b"\r\n\r\n")
    method, path, _ = head.decode().split(" ", 2)
    return Asked(method, path, json.loads(body) if body else None)


def replay(name: str) -> Line:
    """The recorded responses, byte for byte, each to the request that it was recorded for."""
    recorded = [(parsed(request), response) for request, response in transcript(name)]

    def line(asked: Asked) -> Reply:
        for known, response in recorded:
            if known == asked:
                return response
        raise AssertionError(f"this was never asked: {asked}")

    return line
