"""What two processes of ours say to each other on a link: typed messages, and how they are written.

One end calls, the other hosts workers. A frame is a head and a MessagePack array of messages
(https://github.com/msgpack/msgpack/blob/master/spec.md): all that one turn of an event loop has to say, so one step of
an engine is one frame, whatever the number of its streams. The contract's own types are the contents. The head has
three numbers of four bytes, little-endian: the array's length, the same with all bits inverted, and the array's CRC-32.
TCP's own sum lets errors of bad hardware through, and one in a token would not be seen by anybody.

Streams and calls are numbered by the caller. How frames travel, and what a silent or lost link means, is
`worker/link.py`'s business.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Annotated, Any, Final, Generic, Literal, TypeVar
from zlib import crc32

import msgspec
from msgspec import Meta, Raw, Struct

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
    "VERSION",
    "Abort",
    "Callers",
    "Delta",
    "Deltas",
    "Detokenize",
    "Done",
    "Embed",
    "Embedded",
    "Ended",
    "Fault",
    "FrameReader",
    "FromCaller",
    "FromHost",
    "Generate",
    "Gone",
    "Grant",
    "Hello",
    "Leaving",
    "LinkBroken",
    "Load",
    "Message",
    "Obey",
    "Open",
    "Order",
    "Pace",
    "Piece",
    "Ping",
    "Progress",
    "Refuse",
    "Rejected",
    "Statement",
    "Stop",
    "Text",
    "Tokenize",
    "Tokens",
    "Unopened",
    "Unsendable",
    "Wake",
    "Welcome",
    "WrittenDeltas",
    "frame",
    "framed",
    "frames",
    "readable",
    "written",
]

VERSION: Final = 1
"""Of these messages. Peers of another version are told so when they dial."""

MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
"""More than any request or batch of embeddings that is let in takes."""

M = TypeVar("M")

_HEAD = struct.Struct("<III")
_ALL_BITS = 0xFFFFFFFF


class LinkBroken(Exception):
    """What the other end sent cannot be read; nothing after it can be trusted."""


class Unsendable(LinkBroken):
    """What was to be sent is too long, or could not be read at the other end."""


class Message(Struct, frozen=True, array_like=True, tag=True, gc=False):
    """What all have in common."""


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


class Ping(Message, frozen=True):
    """Said by either end that has had nothing to say for a while."""


class Pace(Message, frozen=True):
    """From now on both ends ping at this interval. Said by whoever calls: it knows how many links it has to watch."""

    ping_s: Annotated[float, Meta(ge=0.01, le=60)]


# ------------------------------------------------------------------------------------- the caller's


class Open(Message, frozen=True):
    """To a child: the worker that it is to make. First of all, and once."""

    id: str
    worker: dict[str, Any]
    """The table ``[[worker]]``, its options checked and complete."""
    plugins: tuple[str, ...]
    log_level: str


class Generate(Message, frozen=True):
    stream: int
    worker: str
    request: GenerateRequest


class Embed(Message, frozen=True):
    call: int
    worker: str
    request: EmbedRequest


class Tokenize(Message, frozen=True):
    call: int
    worker: str
    prompt: TextPrompt | ChatPrompt


class Detokenize(Message, frozen=True):
    call: int
    worker: str
    token_ids: tuple[int, ...]


class Wake(Message, frozen=True):
    """Have this worker loaded, if it is loaded on demand; `Done` once it takes requests."""

    call: int
    worker: str


Order = Literal["drain", "unload", "reload", "alias", "unalias", "load"]
"""What an operator may want of a worker; with ``load`` it is one more beside it."""


class Obey(Message, frozen=True):
    """An operator wants this of a worker; `Done` once it is."""

    call: int
    worker: str
    order: Order
    name: str = ""
    """The alias."""
    table: dict[str, Any] | None = None
    """The ``[[worker]]`` that is to be loaded, in JSON."""


class Abort(Message, frozen=True):
    """Nobody wants this stream or the result of this call any more. `Ended` follows as for any other."""

    number: int


class Grant(Message, frozen=True):
    """So many more bytes of this stream may come."""

    stream: int
    size: int


class Refuse(Message, frozen=True):
    """To a child: take no new work."""


class Stop(Message, frozen=True):
    """To a child: end what is under way, close the engine, leave."""


class Welcome(Message, frozen=True):
    """To a node that has dialled in: it is listed here."""

    callers: tuple[str, ...] = ()
    """Where a node has to dial that nobody can dial, besides here: URLs."""


class Callers(Message, frozen=True):
    """These have changed."""

    urls: tuple[str, ...]


class Rejected(Message, frozen=True):
    """To a node that has dialled in: it is not listed, for a reason that its operator can mend."""

    reason: str
    again: bool = False
    """It is listed already, over another link that is well; then there is nothing to mend."""


FromCaller = (
    Ping
    | Pace
    | Open
    | Generate
    | Embed
    | Tokenize
    | Detokenize
    | Wake
    | Obey
    | Abort
    | Grant
    | Refuse
    | Stop
    | Welcome
    | Callers
    | Rejected
)


# --------------------------------------------------------------------------------------- the host's


class Hello(Message, frozen=True):
    """Who hosts here. A node's first message, whoever has dialled."""

    node: str
    """Names one life of one process."""
    incarnation: int
    """Grows with every link of the node, whoever dialled it: of two to one peer, the lower is a leftover."""
    contract: int
    """Of engines: `engine.CONTRACT`."""
    version: str
    """Of fastchat-serve."""
    address: str = ""
    """URL at which it says that it can be dialled; empty: at none."""


class Leaving(Message, frozen=True):
    """The node takes no new work, and will be gone once it has done what it has accepted."""


class Gone(Message, frozen=True):
    """The node has this worker no more."""

    worker: str


class Progress(Message, frozen=True):
    """How far a child is with loading; see `hookspecs.Progress`."""

    stage: str
    fraction: float | None


class Unopened(Message, frozen=True):
    """The child's engine could not be opened; it is for the operator to read."""

    problem: str


Count = Annotated[int, Meta(ge=0)]


class Statement(Message, frozen=True):
    """What a worker is. Sent at the beginning, and whenever any of it has changed."""

    worker: str
    names: Annotated[tuple[str, ...], Meta(min_length=1)]
    adapters: tuple[str, ...]
    speed: float
    state: str
    reason: str
    info: EngineInfo | None
    """None until the engine is open."""
    tool_parser: str
    slots: Count
    queue_limit: Count
    restarts: Count
    protocol_errors: Count
    back_in_s: Annotated[float, Meta(ge=0, le=1e9)]
    wakes: bool = False
    """See `worker.base.Worker`."""
    stage: str = ""
    fraction: float | None = None
    """Of its loading; see `hookspecs.Progress`."""


class Load(Message, frozen=True):
    """How busy a worker is. Comes with the end of every stream, and whenever it has changed."""

    worker: str
    running: Count
    waiting: Count
    of_caller: Count
    """How many of these two are this link's."""
    engine: EngineLoad


class Delta(Struct, frozen=True, array_like=True, gc=False):
    stream: int
    text: str
    token_ids: tuple[int, ...]


class Deltas(Message, frozen=True):
    """Chunks that have nothing but text and ids: nearly all."""

    of: list[Delta]


class WrittenDeltas(Message, frozen=True, tag="Deltas"):
    """The same, as hosts send it."""

    of: list[Raw]


class Piece(Message, frozen=True):
    """A chunk with more to it."""

    stream: int
    chunk: Chunk


class Ended(Message, frozen=True):
    """Nothing of this stream or call is held any more, and nothing of it follows."""

    number: int
    fault: Fault | None = None


class Embedded(Message, frozen=True):
    call: int
    embeddings: Embeddings


class Tokens(Message, frozen=True):
    call: int
    token_ids: tuple[int, ...]


class Text(Message, frozen=True):
    call: int
    text: str


class Done(Message, frozen=True):
    """What was asked for has happened, and has no other result."""

    call: int
    done: bool = True


FromHost = (
    Ping
    | Pace
    | Hello
    | Leaving
    | Gone
    | Progress
    | Unopened
    | Statement
    | Load
    | Deltas
    | Piece
    | Ended
    | Embedded
    | Tokens
    | Text
    | Done
)


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
    return framed(bytes(written(messages)))


def framed(body: bytes) -> bytes:
    """A frame's body with its head."""
    size = len(body)
    return _HEAD.pack(size, size ^ _ALL_BITS, crc32(body)) + body


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


_decoder = cache(msgspec.msgpack.Decoder)
"""By type: there are four kinds of links, and to make a decoder takes as long as thousands of messages."""


class FrameReader(Generic[M]):
    """Bytes in, messages out, however the bytes are cut.

    Args:
        messages: The list of what may come: ``list[FromCaller]`` or ``list[FromHost]``.

    Attributes:
        frames: How many have become complete.
    """

    def __init__(self, messages: type[list[M]]) -> None:
        self._decode = _decoder(messages).decode
        self._rest = bytearray()
        """The beginning of the next frame."""
        self._wanted = _HEAD.size
        """How long that has to become before it is looked at again."""
        self.frames = 0

    @property
    def incomplete_bytes(self) -> int:
        """What there is of the next frame."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[M]:
        """All messages that have become complete. Raises `LinkBroken`."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return []
            data, self._rest = bytes(self._rest), bytearray()
        found: list[M] = []
        for body in self._bodies(memoryview(data)):
            try:
                found += self._decode(body)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise LinkBroken(f"a frame cannot be read: {type(error).__name__}") from error
        return found

    def _bodies(self, data: memoryview) -> Iterator[memoryview]:
        """Of the frames that are complete; the beginning of another is kept."""
        start, end = 0, len(data)
        self._wanted = _HEAD.size
        while end - start >= _HEAD.size:
            size, inverted, checksum = _HEAD.unpack_from(data, start)
            if size ^ inverted != _ALL_BITS:
                raise LinkBroken("a frame has been damaged on its way")
            if size > MAX_FRAME_BYTES:
                raise LinkBroken(f"a frame of {size} bytes is too long")
            if end - start < _HEAD.size + size:
                self._wanted += size
                break
            start += _HEAD.size
            body = data[start : start + size]
            if crc32(body) != checksum:
                raise LinkBroken("a frame has been damaged on its way")
            start += size
            self.frames += 1
            yield body
        self._rest += data[start:]
