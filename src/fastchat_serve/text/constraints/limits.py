"""What a constraint may take: it comes from a client, and compiling it runs where all answers are made."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["ConstraintLimits"]


class ConstraintLimits(Struct, frozen=True, kw_only=True):
    """What one constraint may take, and how many of them are kept compiled."""

    bytes: int = 131_072
    """Of a schema as JSON, a pattern, a grammar, or all options of a choice."""
    nesting: int = 64
    """Levels of a schema's JSON, and of parentheses in a pattern or a grammar."""
    seconds: float = 2.0
    """For compiling, on the first sight of a constraint."""
    memory_bytes: int = 256 * 1024 * 1024
    """For compiling."""
    lexer_fuel: int = 500_000
    """For compiling, in the library's unit: some 50 a microsecond."""
    step_fuel: int = 50_000
    """For the mask of one token, in the library's unit: some 14 a microsecond."""
    step_items: int = 20_000
    """For the mask of one token: partial parses, some 20 a microsecond."""
    lexer_states: int = 20_000
    """Over a whole answer; each is one to two kilobytes."""
    grammar_size: int = 100_000
    """Symbols of a grammar when it is compiled."""
    cached: int = 64
    """Compiled constraints that are kept."""
    cached_bytes: int = 1_048_576
    """Of the sources of those that are kept."""
