"""Constraints in vLLM's form, and how large they may be.

vLLM compiles them in the engine's process and follows them token by token there, so that what is slow for one request
is slow for all. What is too large is refused before. Whether the rest is valid, vLLM's own checks say: see `intake.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from fastchat_serve import Choice, Constraint, Grammar, InvalidRequest, JsonObject, JsonSchema, Regex, constraint_param

__all__ = ["structured_outputs"]

_MOST_CHARACTERS = 65_536
"""Of a schema or grammar as text, or of all choices together."""
_MOST_REGEX_CHARACTERS = 8_192
_MOST_QUANTIFIERS = 64
"""Of a regular expression. Each that can match nothing is one more place to be in at once: ``(a|b)*`` a hundred times
in a row takes 25 ms per token, three hundred times half a second."""
_MOST_GRAMMAR_QUANTIFIERS = 256
_MOST_NESTING = 64
"""Brackets within brackets, of a regular expression or grammar: the compilers recurse."""
_MOST_REPEATS = 10_000
"""Of one counted repetition, and of those within each other together. Compilers write some of them out."""

_COUNTED = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_BRACES = re.compile(r"\{\s*+(\d*+)\s*+(?:,\s*+(\d*+)\s*+)?\}")


def structured_outputs(constraint: Constraint) -> dict[str, Any]:
    """The arguments of vLLM's ``StructuredOutputsParams``. Raises `InvalidRequest` for one that is too large."""
    if isinstance(constraint, JsonObject):
        return {"json_object": True}
    if isinstance(constraint, JsonSchema):
        return {"json": _schema(constraint.schema)}
    if isinstance(constraint, Regex):
        _check_length(constraint.pattern, _MOST_REGEX_CHARACTERS, "regular expression", constraint_param(Regex))
        _check_expression(constraint.pattern, "regular expression", constraint_param(Regex), _MOST_QUANTIFIERS)
        return {"regex": constraint.pattern}
    if isinstance(constraint, Grammar):
        _check_length(constraint.ebnf, _MOST_CHARACTERS, "grammar", constraint_param(Grammar))
        _check_expression(constraint.ebnf, "grammar", constraint_param(Grammar), _MOST_GRAMMAR_QUANTIFIERS)
        return {"grammar": constraint.ebnf}
    return {"choice": _choices(constraint)}


def _schema(schema: Mapping[str, Any]) -> str:
    try:
        text = msgspec.json.encode(schema).decode()
    except (RecursionError, ValueError, TypeError) as error:
        raise InvalidRequest(
            "The JSON schema is nested too deeply, or is no JSON.", param=constraint_param(JsonSchema)
        ) from error
    _check_length(text, _MOST_CHARACTERS, "JSON schema", constraint_param(JsonSchema))
    _check_schema(schema, constraint_param(JsonSchema))
    return text


def _check_schema(schema: Any, param: str) -> None:
    """Counts, references and expressions, wherever they are in a schema."""
    pending = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, Mapping):
            for name in _COUNTED:
                count = node.get(name)
                if isinstance(count, int | float) and count > _MOST_REPEATS:
                    raise InvalidRequest(f"{name} must be at most {_MOST_REPEATS}.", param=param)
            reference = node.get("$ref")
            if isinstance(reference, str) and not reference.startswith("#"):
                raise InvalidRequest("$ref must point into the schema: '#/…'.", param=param)
            pattern = node.get("pattern")
            if isinstance(pattern, str):
                _check_length(pattern, _MOST_REGEX_CHARACTERS, "pattern", param)
                _check_expression(pattern, "pattern", param, _MOST_QUANTIFIERS)
            pending.extend(node.values())
        elif isinstance(node, list | tuple):
            pending.extend(node)


def _choices(constraint: Choice) -> list[str]:
    options: Sequence[str] = constraint.options
    if not options or not all(options):
        raise InvalidRequest("Give at least one choice, and no empty one.", param=constraint_param(Choice))
    _check_length("".join(options), _MOST_CHARACTERS, "choice", constraint_param(Choice))
    return list(options)


def _check_length(text: str, most: int, what: str, param: str) -> None:
    if len(text) > most:
        raise InvalidRequest(f"The {what} has {len(text)} characters; {most} are the most.", param=param)


def _check_expression(text: str, what: str, param: str, most_quantifiers: int) -> None:
    """How deep brackets are nested, and how much is repeated. That escapes and sets count makes it only stricter."""
    if sum(text.count(quantifier) for quantifier in "*+?{") > most_quantifiers:
        raise InvalidRequest(f"The {what} has more than {most_quantifiers} quantifiers.", param=param)
    depth = 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if depth > _MOST_NESTING:
            raise InvalidRequest(f"The {what} is nested deeper than {_MOST_NESTING} brackets.", param=param)
    product = 1
    for low, high in _BRACES.findall(text):
        product *= max(int(low or 0), int(high or 0), 1)
        if product > _MOST_REPEATS:
            raise InvalidRequest(f"The {what} repeats more than {_MOST_REPEATS} times in all.", param=param)
