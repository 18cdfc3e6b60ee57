"""Small random damage to hostile requests: the corpus as a seed for what nobody thought of."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["mutated"]

NUMBERS = [b"-1", b"0", b"1", b"65", b"2147483648", b"18446744073709551616", b"1e308", b"-0.0", b"NaN"]
BYTES = [
    b"\0",
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b"\xff",
    b":",
    b";",
    b",",
    b'"',
    b"\\",
    b"[",
    b"{",
    b"%",
]
VALUES: list[Any] = [None, True, -1, 0, 2**64, 1.5, "", "x", "\0", "\u202e", [], {}, [[]], [{}], {"type": "text"}]


def mutated(seeds: Sequence[bytes], draw: random.Random) -> bytes:
    """One of `seeds`, damaged in one to four places."""
    data = draw.choice(seeds)
    if draw.random() < 0.5:
        return _with_other_values(data, draw)
    for _ in range(draw.randint(1, 4)):
        damage = draw.choice(_DAMAGES)
        data = damage(data, seeds, draw)
    return data


def _put(data: bytes, _: Sequence[bytes], draw: random.Random) -> bytes:
    at = draw.randint(0, len(data))
    return data[:at] + draw.choice(BYTES) + data[at:]


def _flip(data: bytes, _: Sequence[bytes], draw: random.Random) -> bytes:
    at = draw.randrange(len(data) or 1)
    return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]


def _cut(data: bytes, _: Sequence[bytes], draw: random.Random) -> bytes:
    start = draw.randint(0, len(data))
    return data[:start] + data[start + draw.randint(1, 20) :]


def _double(data: bytes, _: Sequence[bytes], draw: random.Random) -> bytes:
    lines = data.split(b"\r\n")
    at = draw.randrange(len(lines))
    return b"\r\n".join([*lines[:at], lines[at], *lines[at:]])


def _splice(data: bytes, seeds: Sequence[bytes], draw: random.Random) -> bytes:
    other = draw.choice(seeds)
    return data[: draw.randint(0, len(data))] + other[draw.randint(0, len(other)) :]


def _number(data: bytes, _: Sequence[bytes], draw: random.Random) -> bytes:
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return data
    at = draw.choice(found)
    return data[: at.start()] + draw.choice(NUMBERS) + data[at.end() :]


_DAMAGES: tuple[Callable[[bytes, Sequence[bytes], random.Random], bytes], ...] = (
    _put,
    _flip,
    _cut,
    _double,
    _splice,
    _number,
)


def _with_other_values(data: bytes, draw: random.Random) -> bytes:
    """Valid HTTP and JSON still, but other values in its body."""
    head, _, body = data.partition(b"\r\n\r\n")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return data
    for _ in range(draw.randint(1, 3)):
        value = _changed(value, draw)
    body = json.dumps(value).encode()
    head = re.sub(rb"content-length: \d+", b"content-length: %d" % len(body), head)
    return head + b"\r\n\r\n" + body


def _changed(value: Any, draw: random.Random) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        return value | {key: _changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], _changed(value[at], draw), *value[at + 1 :]]
    return draw.choice(VALUES)
