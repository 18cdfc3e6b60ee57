"""What two processes of ours say to each other on a link: typed messages, and how they are written.

One end calls, the other hosts workers. A frame is a length (four bytes, little-endian) and a MessagePack array of
messages (https://github.com/msgpack/msgpack/blob/master/spec.md): all that one turn of an event loop has to say, so one
step of an engine is one frame, whatever the number of its streams. The contract's own types are the contents.

Streams and calls are numbered by the caller. How frames travel, and what a silent or lost link means, is
`worker/link.py`'s business.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec
from msgspec import Raw, Struct

from fastchat_serve import errors
from fastchat_serve.engine import (
    ChatPrompt,
    Chunk,
    Embeddings,
    EmbedRequest,
    EngineInfo,
    EngineLoad,
    GenerateRequest,
    TextPrompt,
)
from fastchat_serve.errors import EngineError, ServeError

__all__ = [
    "MAX_FRAME_BYTES",
    "Abort",
    "Delta",
    "Deltas",
    "Detokenize",
    "Embed",
    "Embedded",
    "Ended",
    "Fault",
    "FrameReader",
    "FromCaller",
    "FromHost",
    "Generate",
    "Grant",
    "LinkBroken",
    "Load",
    "Open",
    "Piece",
    "Ping",
    "Progress",
    "Refuse",
    "Statement",
    "Stop",
    "Text",
    "Tokenize",
    "Tokens",
    "Unopened",
    "Unsendable",
    "WrittenDeltas",
    "frame",
    "frames",
    "readable",
    "written",
]

MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
"""More than any request or batch of embeddings that is let in takes."""

M = TypeVar("M")

_LENGTH = struct.Struct("<I")


class LinkBroken(Exception):
    """What the other end sent cannot be read; nothing after it can be trusted."""


class Unsendable(LinkBroken):
    """What was to be sent is too long, or could not be read at the other end."""


class _Message(Struct, frozen=True, array_like=True, tag=True, gc=False):
    pass


class Fault(Struct, frozen=True, array_like=True):
    """A `ServeError` on its way."""

    kind: str
    message: str
    code: str | None
    param: str | None
    retry_after_s: float | None

    @classmethod
    def of(cls, error: ServeError) -> Fault:
        """A kind of a plugin's own goes as the one of ours that it is."""
        kind = next(kind.__name__ for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)
        return cls(kind, str(error), error.code, error.param, error.retry_after_s)

    def error(self) -> ServeError:
        """The error that was sent; one of a kind that is not known here counts as the engine's."""
        kind = getattr(errors, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, ServeError)):
            kind = EngineError
        error = kind.__new__(kind)  # some kinds word their message from other arguments
        ServeError.__init__(error, self.message, param=self.param, code=self.code, retry_after_s=self.retry_after_s)
        return error


class Ping(_Message, frozen=True):
    """Said by either end that has had nothing to say for a while."""


# ------------------------------------------------------------------------------------- the caller's


class Open(_Message, frozen=True):
    """To a child: the worker that it is to make. First of all, and once."""

    id: str
    worker: dict[str, Any]
    """The table ``[[worker]]``, its options checked and complete."""
    plugins: tuple[str, ...]
    log_level: str


class Generate(_Message, frozen=True):
    stream: int
    worker: str
    request: GenerateRequest


class Embed(_Message, frozen=True):
    call: int
    worker: str
    request: EmbedRequest


class Tokenize(_Message, frozen=True):
    call: int
    worker: str
    prompt: TextPrompt | ChatPrompt


class Detokenize(_Message, frozen=True):
    call: int
    worker: str
    token_ids: tuple[int, ...]


class Abort(_Message, frozen=True):
    """Nobody wants this stream or the result of this call any more. `Ended` follows as for any other."""

    number: int


class Grant(_Message, frozen=True):
    """So many more bytes of this stream may come."""

    stream: int
    size: int


class Refuse(_Message, frozen=True):
    """To a child: take no new work."""


class Stop(_Message, frozen=True):
    """To a child: end what is under way, close the engine, leave."""


FromCaller = Ping | Open | Generate | Embed | Tokenize | Detokenize | Abort | Grant | Refuse | Stop


# --------------------------------------------------------------------------------------- the host's


class Progress(_Message, frozen=True):
    """How far a child is with loading; see `hookspecs.Progress`."""

    stage: str
    fraction: float | None


class Unopened(_Message, frozen=True):
    """The child's engine could not be opened; it is for the operator to read."""

    problem: str


class Statement(_Message, frozen=True):
    """What a worker is. Sent at the beginning, and whenever any of it has changed."""

    worker: str
    adapters: tuple[str, ...]
    state: str
    reason: str
    info: EngineInfo | None
    """None until the engine is open."""
    tool_parser: str
    slots: int
    queue_limit: int
    restarts: int
    protocol_errors: int
    back_in_s: float


class Load(_Message, frozen=True):
    """How busy a worker is. Comes with the end of every stream, and whenever it has changed."""

    worker: str
    running: int
    waiting: int
    of_caller: int
    """How many of these two are this link's."""
    engine: EngineLoad


class Delta(Struct, frozen=True, array_like=True, gc=False):
    stream: int
    text: str
    token_ids: tuple[int, ...]


class Deltas(_Message, frozen=True):
    """Chunks that have nothing but text and ids: nearly all."""

    of: list[Delta]


class WrittenDeltas(_Message, frozen=True, tag="Deltas"):
    """The same, as hosts send it."""

    of: list[Raw]


class Piece(_Message, frozen=True):
    """A chunk with more to it."""

    stream: int
    chunk: Chunk


class Ended(_Message, frozen=True):
    """Nothing of this stream or call is held any more, and nothing of it follows."""

    number: int
    fault: Fault | None = None


class Embedded(_Message, frozen=True):
    call: int
    embeddings: Embeddings


class Tokens(_Message, frozen=True):
    call: int
    token_ids: tuple[int, ...]


class Text(_Message, frozen=True):
    call: int
    text: str


FromHost = Ping | Progress | Unopened | Statement | Load | Deltas | Piece | Ended | Embedded | Tokens | Text


# -------------------------------------------------------------------------------------------- frames

_encoder = msgspec.msgpack.Encoder()
_read_message = msgspec.msgpack.Decoder(FromCaller | FromHost).decode
_read_delta = msgspec.msgpack.Decoder(Delta).decode


def written(message: object) -> Raw:
    """A message or a `Delta` as it will be in its frame. Raises `Unsendable` if it cannot be."""
    try:
        body = _encoder.encode(message)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Unsendable(f"{type(message).__name__} cannot be written: {error}") from error
    if len(body) >= MAX_FRAME_BYTES:
        raise Unsendable(f"{type(message).__name__} of {len(body)} bytes is longer than a link takes")
    return Raw(body)


def readable(message: object) -> Raw:
    """The same, of what an engine made: it is proved that the other end can read it, too."""
    body = written(message)
    try:
        (_read_delta if type(message) is Delta else _read_message)(body)
    except msgspec.MsgspecError as error:
        raise Unsendable(f"{type(message).__name__} could not be read: {error}") from error
    return body


def frame(messages: Sequence[object]) -> bytes:
    """One frame of `messages`. Raises `Unsendable` if it is too long for the other end."""
    body = written(messages)
    return _LENGTH.pack(len(body)) + bytes(body)


def frames(messages: Sequence[object]) -> Iterator[bytes]:
    """One frame; more if it would be too long. Raises `Unsendable` if a single message is."""
    try:
        yield frame(messages)
    except Unsendable:
        if len(messages) == 1:
            raise
        half = len(messages) // 2
        yield from frames(messages[:half])
        yield from frames(messages[half:])


class FrameReader(Generic[M]):
    """Bytes in, messages out, however the bytes are cut.

    Args:
        messages: The list of what may come: ``list[FromCaller]`` or ``list[FromHost]``.
    """

    def __init__(self, messages: type[list[M]]) -> None:
        self._decode = msgspec.msgpack.Decoder(messages).decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[M]:
        """All messages that have become complete. Raises `LinkBroken`."""
        self._buffer += data
        found: list[M] = []
        for body in self._bodies():
            try:
                found += self._decode(body)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise LinkBroken(f"a frame cannot be read: {type(error).__name__}") from error
        return found

    def _bodies(self) -> Iterator[bytes]:
        start, end = 0, len(self._buffer)
        try:
            while end - start >= _LENGTH.size:
                (size,) = _LENGTH.unpack_from(self._buffer, start)
                if size > MAX_FRAME_BYTES:
                    raise LinkBroken(f"a frame of {size} bytes is too long")
                if end - start < _LENGTH.size + size:
                    return
                body = bytes(memoryview(self._buffer)[start + _LENGTH.size : start + _LENGTH.size + size])
                start += _LENGTH.size + size
                yield body
        finally:
            del self._buffer[:start]
