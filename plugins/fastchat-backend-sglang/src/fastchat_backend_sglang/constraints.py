"""Constraints in the forms that SGLang's grammar backends share."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType

from fastchat_serve import Choice, Constraint, Grammar, InvalidRequest, JsonObject, JsonSchema, Regex, constraint_param

__all__ = ["as_params", "check"]

_LONGEST = 100_000
"""Characters. SGLang compiles constraints beside its steps, yet one of unreasonable size takes a core for minutes."""

_SPECIAL = re.compile(r"[\\^$.|?*+()\[\]{}/]")
_NAMED: Mapping[str, str] = MappingProxyType({"\n": r"\n", "\r": r"\r", "\t": r"\t"})


def as_params(constraint: Constraint) -> dict[str, str]:
    """The entry of SGLang's ``sampling_params``."""
    match constraint:
        case JsonObject():
            return {"json_schema": '{"type": "object"}'}
        case JsonSchema():
            return {"json_schema": json.dumps(constraint.schema)}
        case Regex():
            return {"regex": _unanchored(constraint.pattern)}
        case Grammar():
            return {"ebnf": constraint.ebnf}
        case Choice():
            return {"regex": f"({'|'.join(map(_literal, constraint.options))})"}


def check(constraint: Constraint) -> None:
    """Raise `InvalidRequest` for what SGLang would take amiss, or for something else. May take a while.

    Regular expressions and schemas are also refused by SGLang, before the answer begins. Half a grammar is not: some
    backends read as much of it as they can.
    """
    (text,) = as_params(constraint).values()
    if not text or (isinstance(constraint, Choice) and not constraint.options):
        raise InvalidRequest(
            "The constraint is empty, so nothing can match it.", param=constraint_param(type(constraint))
        )
    if len(text) > _LONGEST:
        raise InvalidRequest(
            f"The constraint is {len(text)} characters long. At most {_LONGEST} are allowed.",
            param=constraint_param(type(constraint)),
        )
    if isinstance(constraint, Grammar):
        _check_grammar(constraint)


def _check_grammar(constraint: Grammar) -> None:
    import xgrammar  # comes with SGLang

    try:
        xgrammar.Grammar.from_ebnf(constraint.ebnf)
    except RuntimeError as error:
        _, _, reason = str(error).partition("EBNF ")  # what stands before is a place in XGrammar's source
        raise InvalidRequest(
            f"The grammar is not valid EBNF: {' '.join(reason.split())[:300] or 'it cannot be read'}.",
            param=constraint_param(type(constraint)),
        ) from error


def _unanchored(pattern: str) -> str:
    """Without ``^`` at the beginning and ``$`` at the end: a pattern holds for the whole text anyway."""
    pattern = pattern.removeprefix("^")
    body = pattern.removesuffix("$")
    escaped = (len(body) - len(body.rstrip("\\"))) % 2
    return pattern if escaped else body


def _literal(text: str) -> str:
    """As a regular expression, in what the dialects have in common."""
    return "".join(_NAMED.get(char) or _SPECIAL.sub(r"\\\g<0>", char) for char in text)
