"""Long texts in pieces that llama.cpp's tokenizer survives.

For byte-pair vocabularies it first splits a text with regular expressions, many of them by C++'s own, whose matcher
recurses once per character: on sixteen thousand letters, spaces or full stops without a break it runs out of stack, and
the process is gone. So no piece is longer than a quarter of that.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["MOST_CHARACTERS", "pieces"]

MOST_CHARACTERS = 4096
"""Of a piece: up to two of the eight mebibytes that a thread's stack has."""


def pieces(text: str) -> Iterator[str]:
    """`text`, cut between words; within a word only where one is longer than a piece."""
    start = 0
    while len(text) - start > MOST_CHARACTERS:
        end = _end_of_word(text, start, start + MOST_CHARACTERS)
        yield text[start:end]
        start = end
    yield text[start:]


def _end_of_word(text: str, start: int, end: int) -> int:
    """Where the last word before `end` stops that another follows, `end` if there is none.

    Splitting always breaks between a word and the space before the next, so that a cut there changes no token.
    """
    space = text.rfind(" ", start + 1, end - 1)
    while space > start:
        if _in_word(text[space - 1]) and _in_word(text[space + 1]):
            return space
        space = text.rfind(" ", start + 1, space)
    return end


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"
