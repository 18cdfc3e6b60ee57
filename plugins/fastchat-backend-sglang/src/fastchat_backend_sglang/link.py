"""The messages between a server and the process that hosts its SGLang, and how they travel.

One socket pair per engine. A message is a MessagePack array behind its length; all that one turn of an event loop has
to say leaves in one write. The contract's own types are the contents, so neither side translates.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
from msgspec import Struct

from fastchat_backend_sglang.options import SglangOptions
from fastchat_serve import (
    ChatPrompt,
    Chunk,
    Embeddings,
    EmbedRequest,
    EngineInfo,
    GenerateRequest,
    TextPrompt,
)

__all__ = [
    "Abort",
    "Answer",
    "Broken",
    "Connection",
    "Detokenize",
    "Embed",
    "Ended",
    "Fault",
    "FromHost",
    "Generate",
    "Load",
    "Open",
    "Opened",
    "Piece",
    "Progress",
    "Question",
    "Refused",
    "Render",
    "ToHost",
    "Tokenize",
    "receive",
    "send",
]

T = TypeVar("T")

_LENGTH = struct.Struct("<I")


class _Message(Struct, frozen=True, array_like=True, tag=True, gc=False):
    pass


# ---------------------------------------------------------------------------------------- to the host


class Open(_Message, frozen=True):
    """The first message: load this."""

    model: str
    options: SglangOptions


class Generate(_Message, frozen=True):
    """Begin an answer. Its pieces come back with the same `key`."""

    key: int
    request: GenerateRequest


class Embed(_Message, frozen=True):
    key: int
    request: EmbedRequest


class Tokenize(_Message, frozen=True):
    key: int
    prompt: TextPrompt | ChatPrompt


class Detokenize(_Message, frozen=True):
    key: int
    token_ids: tuple[int, ...]


class Render(_Message, frozen=True):
    key: int
    prompt: ChatPrompt


class Abort(_Message, frozen=True):
    """Give up what runs under `key`. It still ends with an `Ended`."""

    key: int


Question = Embed | Tokenize | Detokenize | Render
ToHost = Open | Generate | Question | Abort


# -------------------------------------------------------------------------------------- from the host


class Progress(_Message, frozen=True):
    stage: str


class Opened(_Message, frozen=True):
    """Loaded."""

    info: EngineInfo


class Refused(_Message, frozen=True):
    """Not loaded, and why."""

    problem: str


class Piece(_Message, frozen=True):
    """A chunk of an answer."""

    key: int
    chunk: Chunk


class Fault(Struct, frozen=True):
    """A `ServeError`: the name of its class, and its attributes."""

    kind: str
    message: str
    param: str | None
    code: str | None


class Ended(_Message, frozen=True):
    """Nothing is held for `key` any more."""

    key: int
    fault: Fault | None


class Answer(_Message, frozen=True):
    """To a `Question`; nothing comes after it."""

    key: int
    value: Embeddings | tuple[int, ...] | str


class Load(_Message, frozen=True):
    kv_used_fraction: float


class Broken(_Message, frozen=True):
    """SGLang has lost one of its processes. The host leaves as well."""

    reason: str


FromHost = Progress | Opened | Refused | Piece | Ended | Answer | Load | Broken


# ------------------------------------------------------------------------------------------ transport


def _to_plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def _from_plain(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(kind)


_encoder = msgspec.msgpack.Encoder(enc_hook=_to_plain)


def frame(message: ToHost | FromHost) -> bytes:
    """`message` as it travels. Raises `UnicodeEncodeError`, `OverflowError` or `TypeError` for what cannot."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    """Of the messages of one direction: `ToHost` or `FromHost`."""
    return msgspec.msgpack.Decoder(kind, dec_hook=_from_plain)


def send(channel: socket.socket, message: FromHost) -> None:
    """Blocking, for a host that has no event loop yet."""
    channel.sendall(frame(message))


def receive(channel: socket.socket) -> ToHost:
    """Blocking. Raises `EOFError` once the server is gone."""
    (size,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size))
    message: ToHost = decoder(ToHost).decode(_exactly(channel, size))
    return message


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        if not (piece := channel.recv(size - len(data))):
            raise EOFError
        data += piece
    return bytes(data)


class Connection(asyncio.Protocol):
    """One end within an event loop. `lost` is called once, when the other end is gone."""

    def __init__(self, kind: Any, on_message: Callable[[Any], None], lost: Callable[[], None]) -> None:
        """`kind`: what arrives here, `ToHost` or `FromHost`."""
        self._decoder, self._on_message, self._lost = decoder(kind), on_message, lost
        self._arrived = bytearray()
        self._leaving: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def over(
        cls, channel: socket.socket, kind: Any, on_message: Callable[[Any], None], lost: Callable[[], None]
    ) -> Connection:
        """On `channel`, which it closes in the end."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_unix_connection(lambda: cls(kind, on_message, lost), sock=channel)
        return connection

    def send(self, message: ToHost | FromHost) -> None:
        """Leaves at the end of this turn of the loop. Raises what `frame` raises."""
        self._leaving.append(frame(message))
        if len(self._leaving) == 1:
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        leaving, self._leaving = self._leaving, []
        if leaving and self._transport is not None:
            self._transport.write(b"".join(leaving))

    def close(self) -> None:
        """Once what was sent has left."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's are not of asyncio's classes

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost()

    def data_received(self, data: bytes) -> None:
        arrived = self._arrived
        arrived += data
        start = 0
        with memoryview(arrived) as view:
            while len(arrived) - start >= _LENGTH.size:
                (size,) = _LENGTH.unpack_from(view, start)
                end = start + _LENGTH.size + size
                if end > len(arrived):
                    break
                self._on_message(self._decoder.decode(view[start + _LENGTH.size : end]))
                start = end
        del arrived[:start]
