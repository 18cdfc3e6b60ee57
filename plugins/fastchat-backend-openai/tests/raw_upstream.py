"""An upstream written by hand, which does whatever a test tells it, and requests to engines before it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Self

from msgspec import Struct

from fastchat_backend_openai.engine import OpenAIEngine
from fastchat_serve import ChatPrompt, Chunk, GenerateRequest, Message

__all__ = ["DONE", "Handler", "Opened", "RawUpstream", "Request", "answer_of", "asking", "chat_event", "event", "head"]

PATIENCE_S = 20.0
"""No wait of a test is longer."""

Opened = Callable[..., AbstractAsyncContextManager[OpenAIEngine]]


class Request(Struct):
    """What came: headers have names in lower case."""

    line: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


Handler = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]
"""Answers one request; the connection is kept unless it closes it."""


class RawUpstream:
    """Serves `handler` on a free port.

    Attributes:
        requests: All that came.
        connections: How many were ever made.
        left: Set when a client went away.
    """

    def __init__(self, handler: Handler) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.left = asyncio.Event()
        self._handler = handler
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while not writer.is_closing():
                request = await _read(reader)
                self.requests.append(request)
                watching = asyncio.ensure_future(self._watch(reader))
                try:
                    await self._handler(request, writer)
                    await writer.drain()
                finally:
                    watching.cancel()
                    with suppress(asyncio.CancelledError):
                        await watching
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.set()
        except asyncio.CancelledError:
            pass  # at the end of a test; nobody waits for this task but us
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        """See a client go while it is being answered."""
        while not reader.at_eof() and reader.exception() is None:  # noqa: ASYNC110 - nothing to wait for but that
            await asyncio.sleep(0.002)
        self.left.set()


async def _read(reader: asyncio.StreamReader) -> Request:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    return Request(lines[0], headers, await reader.readexactly(int(headers.get("content-length", 0))))


def head(status: int = 200, **headers: str) -> bytes:
    """A reply's head; ``head(429, retry_after="3")``. Without a length, the body ends with the connection."""
    every = {"content_type": "text/event-stream"} | headers
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in every.items())
    return f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode()


def event(data: object) -> bytes:
    """A server-sent event."""
    return b"data: " + (data.encode() if isinstance(data, str) else json.dumps(data).encode()) + b"\n\n"


DONE = event("[DONE]")


def chat_event(text: str | None = None, finish: str | None = None, usage: tuple[int, int] | None = None) -> bytes:
    """A chat's event; with `usage`, also (prompt_tokens, completion_tokens)."""
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish}
    data: dict[str, Any] = {"choices": [choice]}
    if usage is not None:
        data["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return event(data)


def asking(text: str = "hi", **changes: Any) -> GenerateRequest:
    """A chat of one message."""
    return GenerateRequest(**{"id": "r-1", "prompt": ChatPrompt((Message(role="user", content=text),))} | changes)


async def answer_of(engine: OpenAIEngine, request: GenerateRequest | None = None) -> list[Chunk]:
    """All chunks, within bounded time."""
    async with asyncio.timeout(PATIENCE_S):
        return [chunk async for chunk in engine.generate_stream(request or asking())]
