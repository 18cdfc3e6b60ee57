"""The forms to which an answer can be bound: one normal form each, whatever words a client's API has for them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from msgspec import Struct

__all__ = ["Choice", "Constraint", "Grammar", "JsonObject", "JsonSchema", "Regex", "constraint_param"]


class JsonObject(Struct, frozen=True, tag="json_object"):
    """Any JSON object."""


class JsonSchema(Struct, frozen=True, tag="json_schema"):
    """JSON that is valid under `schema`."""

    schema: Mapping[str, Any]


class Regex(Struct, frozen=True, tag="regex"):
    """Text that `pattern` matches from its first to its last character."""

    pattern: str


class Grammar(Struct, frozen=True, tag="grammar"):
    """Text of a context-free grammar, in EBNF as GBNF and XGrammar write it."""

    ebnf: str


class Choice(Struct, frozen=True, tag="choice"):
    """Exactly one of `options`."""

    options: tuple[str, ...]


Constraint = JsonObject | JsonSchema | Regex | Grammar | Choice

_PARAMS: Mapping[type[Constraint], str] = MappingProxyType(
    {
        JsonObject: "response_format",
        JsonSchema: "response_format",
        Regex: "structured_outputs.regex",
        Grammar: "structured_outputs.grammar",
        Choice: "structured_outputs.choice",
    }
)


def constraint_param(kind: type[Constraint]) -> str:
    """What clients call the field that constraints of this kind come from: the `param` of errors about them."""
    return _PARAMS[kind]
