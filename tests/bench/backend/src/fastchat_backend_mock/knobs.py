"""What the benchmark's load generator asks of the engine, written into the message: ``#itl=20000;phases=4#``.

In the message they survive every gateway, whatever it makes of the rest of a request.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from fastchat_serve import ChatPrompt, GenerateRequest, InvalidRequest, TextPrompt

__all__ = ["Knobs"]

_KNOBS = re.compile(r"#((?:[a-z]+=\d+;?)+)#")
_SEARCHED_CHARS = 200
"""A prompt of 100 KB is not searched to its end."""


class Knobs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See the module."""

    itl: int = 0
    """Microseconds between two tokens of a stream; 0: one token per turn of the event loop."""
    ttft: int = 0
    """Microseconds until the first token."""
    ts: int = 0
    """1: a token is the time at which it is sent (`tokens.stamp`)."""
    phases: Annotated[int, Meta(ge=1)] = 1
    """Over how many step clocks streams are spread, as if they came from so many engines."""
    size: Annotated[int, Meta(ge=1)] = 200
    """Bytes of an answer in one chunk."""

    @classmethod
    def of(cls, request: GenerateRequest) -> Knobs:
        """The knobs near the beginning of the last message, or of a prompt that is text; else the defaults.

        Raises:
            InvalidRequest: There is no such knob.
        """
        match request.prompt:
            case ChatPrompt(messages=[*_, last]):
                text = last.text
            case TextPrompt(text=text):
                pass
            case _:
                text = ""
        found = _KNOBS.search(text, 0, _SEARCHED_CHARS)
        return _decoded(found[1]) if found is not None else _DEFAULTS


_DEFAULTS = Knobs()


@lru_cache(maxsize=64)  # a run has one set of them
def _decoded(written: str) -> Knobs:
    pairs = (pair.split("=") for pair in written.rstrip(";").split(";"))
    try:
        return msgspec.convert({name: int(value) for name, value in pairs}, Knobs)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"#{written}#: {error}") from None
