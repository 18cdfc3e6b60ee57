"""Long texts in pieces that llama.cpp's tokenizer survives.

For byte-pair vocabularies it first splits a text with regular expressions, many of them by C++'s own, whose matcher
recurses once per character: on sixteen thousand letters, spaces or full stops without a break it runs out of stack, and
the process is gone. So no piece is longer than a quarter of that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["MOST_CHARACTERS", "pieces"]

MOST_CHARACTERS = 4096
"""Of a piece: up to two of the eight mebibytes that a thread's stack has."""

_UP_TO_LAST_WORD = re.compile(r".*\w(?= \w)", re.DOTALL)
"""Splitting always breaks between a word and the space before the next, so that a cut there changes no token."""


def pieces(text: str) -> Iterator[str]:
    """`text`, cut between words; within a word only where one is longer than a piece."""
    start = 0
    while len(text) - start > MOST_CHARACTERS:
        end = start + MOST_CHARACTERS
        words = _UP_TO_LAST_WORD.match(text, start, end)
        end = end if words is None else words.end()
        yield text[start:end]
        start = end
    yield text[start:]
