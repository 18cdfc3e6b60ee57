"""How messages travel on a link: all that one turn of an event loop has to say is one frame.

A frame is a head and a MessagePack array of messages (https://github.com/msgpack/msgpack/blob/master/spec.md): so one
step of an engine is one frame, whatever the number of its streams. The head has three numbers of four bytes,
little-endian: the array's length, the same with all bits inverted, and the array's CRC-32. TCP's own sum lets errors of
bad hardware through, and one in a token would not be seen by anybody.

What messages mean is in `link.py` and `watch.py`; when frames leave, and what a broken one ends, is `worker/link.py`'s
business.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final, Generic, TypeVar
from zlib import crc32

import msgspec
from msgspec import Raw

from fastchat_serve.protocol.link import Delta, FromCaller, FromHost

__all__ = [
    "MAX_FRAME_BYTES",
    "FrameReader",
    "LinkBroken",
    "Unsendable",
    "frame",
    "framed",
    "frames",
    "readable",
    "written",
]

MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
"""More than any request or batch of embeddings that is let in takes."""

M = TypeVar("M")

_HEAD = struct.Struct("<III")
_ALL_BITS = 0xFFFFFFFF

_encoder = msgspec.msgpack.Encoder()
_read_message = msgspec.msgpack.Decoder(FromCaller | FromHost).decode
_read_delta = msgspec.msgpack.Decoder(Delta).decode


class LinkBroken(Exception):
    """What the other end sent cannot be read; nothing after it can be trusted."""


class Unsendable(LinkBroken):
    """What was to be sent is too long, or could not be read at the other end."""


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
        whole = memoryview(data)
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return []
            whole, self._rest = memoryview(self._rest), bytearray()
        found: list[M] = []
        for body in self._bodies(whole):
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
