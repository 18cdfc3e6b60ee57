"""What is asked, and when: traces as files, in three formats that are told apart by their looks.

- Ours: JSON lines with the fields of `Line`.
- Mooncake's (Qin et al. 2024): JSON lines with ``timestamp`` in milliseconds, ``input_length``, ``output_length``, and
  ``hash_ids`` for blocks of 512 tokens of the prompt.
- Azure's (Patel et al. 2024): CSV with the columns ``TIMESTAMP``, ``ContextTokens`` and ``GeneratedTokens``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Annotated, Final, TextIO, TypeVar
from zlib import crc32

import msgspec
from msgspec import Meta, Struct

from fastchat_serve.errors import ConfigError

__all__ = ["BLOCK_TOKENS", "Arrival", "Line", "blocks_of", "read_trace"]

BLOCK_TOKENS: Final = 128
"""Of what prompts share, in our format and where requests are made up."""

_MOONCAKE_TOKENS: Final = 512

T = TypeVar("T")
Tokens = Annotated[int, Meta(ge=0)]


class Arrival(Struct, frozen=True, gc=False):
    """One request."""

    at_s: float
    model: str
    prompt_tokens: int
    output_tokens: int
    session: str = ""
    blocks: tuple[int, ...] = ()
    """Of the prompt's beginning: equal ids where everything up to the block's end is equal."""
    block_tokens: int = BLOCK_TOKENS


class Line(Struct, frozen=True, forbid_unknown_fields=True):
    """A line of our format."""

    at_s: Annotated[float, Meta(ge=0)]
    """When it comes, in seconds; not before the line above."""
    prompt_tokens: Tokens
    output_tokens: Annotated[int, Meta(ge=1)]
    model: str = ""
    """Empty: the first of the fleet."""
    session: str = ""
    """What the client calls the conversation, if it does."""
    prefix: str = ""
    """Name of a beginning that the prompt has in common with all others that name it."""
    prefix_tokens: Tokens = 0
    """How much of it this prompt has."""


class _Mooncake(Struct, frozen=True):
    timestamp: Annotated[float, Meta(ge=0)]
    input_length: Tokens
    output_length: Tokens
    hash_ids: tuple[int, ...] = ()


def read_trace(path: Path, model: str) -> Iterator[Arrival]:
    """The requests of a file, `model` where it names none. Raises `ConfigError`, also in the middle."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            first = file.readline()
            read = _azure if first.startswith("TIMESTAMP") else _mooncake if '"input_length"' in first else _ours
            before_s, number = 0.0, 0
            for number, arrival in read(first, file, path, model):
                if arrival.at_s < before_s:
                    raise ConfigError("this request comes before the one above", file=str(path), line=number)
                before_s = arrival.at_s
                yield arrival
            if not number:
                raise ConfigError("there is no request in this trace", file=str(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"cannot read this trace: {reason}", file=str(path)) from None


def blocks_of(prefix: str, tokens: int) -> tuple[int, ...]:
    """Ids of the whole blocks of a beginning with this name."""
    start = crc32(prefix.encode("utf-8", "surrogatepass")) << 24
    return tuple(range(start, start + tokens // BLOCK_TOKENS))


def _ours(first: str, file: TextIO, path: Path, model: str) -> Iterator[tuple[int, Arrival]]:
    decoder = msgspec.json.Decoder(Line)
    for number, text in _lines(first, file):
        line = _decoded(decoder, text, path, number)
        blocks = blocks_of(line.prefix, min(line.prefix_tokens, line.prompt_tokens)) if line.prefix else ()
        asked = line.model or model
        yield number, Arrival(line.at_s, asked, line.prompt_tokens, line.output_tokens, line.session, blocks)


def _mooncake(first: str, file: TextIO, path: Path, model: str) -> Iterator[tuple[int, Arrival]]:
    decoder = msgspec.json.Decoder(_Mooncake)
    for number, text in _lines(first, file):
        line = _decoded(decoder, text, path, number)
        whole = line.hash_ids[: line.input_length // _MOONCAKE_TOKENS]
        written = max(1, line.output_length)
        yield number, Arrival(line.timestamp / 1000, model, line.input_length, written, "", whole, _MOONCAKE_TOKENS)


def _azure(first: str, file: TextIO, path: Path, model: str) -> Iterator[tuple[int, Arrival]]:
    began: datetime | None = None
    for number, row in enumerate(csv.DictReader(chain([first], file)), 2):
        try:
            at = datetime.fromisoformat(row["TIMESTAMP"][:26])  # they have seven digits of a second
            began = began or at
            tokens = int(row["ContextTokens"]), max(1, int(row["GeneratedTokens"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not a row of such a trace: {error}", file=str(path), line=number) from None
        yield number, Arrival((at - began).total_seconds(), model, *tokens)


def _lines(first: str, file: TextIO) -> Iterator[tuple[int, str]]:
    return ((number, text) for number, text in enumerate(chain([first], file), 1) if text.strip())


def _decoded(decoder: msgspec.json.Decoder[T], text: str, path: Path, number: int) -> T:
    try:
        return decoder.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigError(str(error), file=str(path), line=number) from None
