"""Every kind of constraint in the one form that is compiled: a Lark grammar as llguidance reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fastchat_serve.engine import Choice, Constraint, Grammar, JsonObject, JsonSchema, Regex, constraint_param
from fastchat_serve.errors import InvalidRequest
from fastchat_serve.text.constraints.ebnf import lark_rules
from fastchat_serve.text.constraints.limits import ConstraintLimits
from fastchat_serve.text.constraints.schemas import check_schema
from fastchat_serve.text.constraints.tokens import library

__all__ = ["HEAD", "checked_schema", "grammar_of"]

HEAD = '%llguidance {"no_forcing": true}\n'
"""Text that must come next may be cut into tokens in every way, as the model is used to, and not only as the
tokenizer would cut it."""

_JSON_OPTIONS: Mapping[str, Any] = MappingProxyType(
    {
        # Nothing, a space, or a new line and its indentation: a model that may write more can go on for ever.
        "whitespace_flexible": True,
        "whitespace_pattern": r" |\n {0,20}",
        "item_separator": ",",
        "key_separator": ":",
        # Without \\/ and \\u, which could write the name of a property so that it is not known for it.
        "json_allowed_escapes": 'nrbtf"\\',
        "coerce_one_of": False,
        "lenient": False,
    }
)


def grammar_of(constraint: Constraint, limits: ConstraintLimits) -> str:
    """`constraint` as a grammar. Raises `InvalidRequest` for what passes the limits on size, and for bad EBNF."""
    match constraint:
        case JsonObject():
            return f"{HEAD}start: %json {_with_options({'type': 'object'})}\n"
        case JsonSchema(schema=schema):
            return f"{HEAD}start: %json {checked_schema(schema, constraint_param(JsonSchema), limits)}\n"
        case Regex(pattern=pattern):
            _check_text(pattern, constraint_param(Regex), limits)
            return f"{HEAD}start: {_regex(pattern)}\n"
        case Grammar(ebnf=ebnf):
            _check_text(ebnf, constraint_param(Grammar), limits)
            return HEAD + lark_rules(ebnf, nesting=limits.nesting)
        case Choice(options=options):
            if not options:
                raise InvalidRequest("A choice needs at least one option.", param=constraint_param(Choice))
            _check_text("".join(options), constraint_param(Choice), limits)
            return f"{HEAD}start: {_regex(_any_of(options))}\n"


def checked_schema(schema: Mapping[str, Any], param: str, limits: ConstraintLimits) -> str:
    """`schema` as a grammar has it. Raises `InvalidRequest` about `param`."""
    _check_nesting(schema, param, limits.nesting)
    try:
        text = _with_options(schema)
    except (TypeError, ValueError) as error:
        raise InvalidRequest("The schema is not JSON.", param=param) from error
    _check_text(text, param, limits)
    check_schema(schema, param)
    return text


def _with_options(schema: Mapping[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": dict(_JSON_OPTIONS)}, ensure_ascii=False, allow_nan=False)


def _regex(pattern: str) -> str:
    """A pattern as Lark writes it."""
    if not pattern:
        return '""'  # two slashes would begin a comment
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:  # it would escape the slash
        raise InvalidRequest("The pattern ends in the middle of an escape.", param=constraint_param(Regex))
    return f"/{library().regex_to_lark(pattern)}/"


def _any_of(options: Sequence[str]) -> str:
    return "|".join("".join(map(_literal, option)) for option in dict.fromkeys(options))


def _literal(char: str) -> str:
    return char if char.isalnum() or not char.isascii() else f"\\x{{{ord(char):x}}}"


def _check_text(text: str, param: str, limits: ConstraintLimits) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest("The constraint has a lone surrogate, which is no text.", param=param) from error
    if size > limits.bytes:
        raise InvalidRequest(f"A constraint may have {limits.bytes} bytes; this one has {size}.", param=param)


def _check_nesting(schema: Mapping[str, Any], param: str, most: int) -> None:
    """Level by level, without recursion."""
    level: list[Any] = [schema]
    for _ in range(most):
        level = [item for value in level for item in _parts(value)]
        if not level:
            return
    raise InvalidRequest(f"The schema is nested more than {most} levels deep.", param=param)


def _parts(value: Any) -> Sequence[Any]:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [part for part in parts if isinstance(part, Mapping | list | tuple)]
