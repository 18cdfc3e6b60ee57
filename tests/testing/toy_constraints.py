"""A text within a constraint, chosen by a seed: how an engine without a real grammar keeps to one."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from fastchat_serve import Choice, Constraint, Grammar, InvalidRequest, JsonObject, JsonSchema, Regex

__all__ = ["text_within"]


def text_within(constraint: Constraint, seed: int) -> str:
    """Raises `InvalidRequest` if nothing is, or if it means nothing."""
    rng = random.Random(seed)
    try:
        match constraint:
            case JsonObject():
                return json.dumps({"number": rng.randrange(100)})
            case JsonSchema():
                return json.dumps(_value(constraint.schema, rng))
            case Regex():
                return "".join(_matching(parser.parse(constraint.pattern), rng))
            case Choice():
                return rng.choice(constraint.options)
            case Grammar():
                return _derived("root", _rules(constraint.ebnf), rng)
    except (KeyError, IndexError, re.error) as error:
        raise InvalidRequest(f"The constraint means nothing: {error}.", param="response_format") from None


def _value(schema: Mapping[str, Any], rng: random.Random) -> object:
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kinds = {
        "object": lambda: {name: _value(inner, rng) for name, inner in schema["properties"].items()},
        "string": lambda: "x" * rng.randint(0, schema.get("maxLength", 9)),
        "integer": lambda: rng.randint(schema.get("minimum", 0), schema.get("maximum", 99)),
        "boolean": lambda: rng.random() < 0.5,
    }
    return kinds[schema["type"]]()


def _matching(pattern: Any, rng: random.Random) -> list[str]:
    """Text that a parsed pattern of literals, classes, groups, branches and bounded repeats matches."""
    text: list[str] = []
    for kind, argument in pattern:
        match str(kind):
            case "LITERAL":
                text.append(chr(argument))
            case "IN":
                text += _matching([rng.choice(argument)], rng)
            case "RANGE":
                text.append(chr(rng.randint(*argument)))
            case "SUBPATTERN":
                text += _matching(argument[-1], rng)
            case "BRANCH":
                text += _matching(rng.choice(argument[1]), rng)
            case "MAX_REPEAT":
                least, most, inner = argument
                for _ in range(rng.randint(least, min(most, least + 3))):
                    text += _matching(inner, rng)
    return text


def _rules(ebnf: str) -> dict[str, list[str]]:
    pairs = (line.partition("::=") for line in ebnf.strip().splitlines())
    return {name.strip(): body.split("|") for name, _, body in pairs}


def _derived(rule: str, rules: Mapping[str, list[str]], rng: random.Random) -> str:
    text = ""
    for term in re.findall(r'"[^"]*"|\[[^\]]*\]|\w+', rng.choice(rules[rule])):
        if term.startswith('"'):
            text += term[1:-1]
        elif term.startswith("["):
            text += "".join(_matching(parser.parse(term), rng))
        else:
            text += _derived(term, rules, rng)
    return text
