"""What of JSON Schema is refused here, by name, since llguidance would serve it too freely.

It refuses the keywords that it does not know by itself. What it takes and gets wrong was found by comparing answers
with a validator: ranges of numbers within one unit whose bound is excluded, integers that a float cannot hold, and
counts of properties, where a name may be written twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from fastchat_serve.errors import InvalidRequest

__all__ = ["check_schema"]

_SUBSCHEMAS: Mapping[str, type] = MappingProxyType(
    {"additionalProperties": object, "items": object, "additionalItems": object}
    | dict.fromkeys(("anyOf", "allOf", "oneOf", "prefixItems"), list)
    | dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), dict)
)
"""Keywords that hold a schema, or a list or mapping of them."""

_SAME_PLACE = ("anyOf", "allOf", "oneOf")
_LOWER, _UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")

_EXACT = 2**53
"""From here on floats have no neighbours that are integers."""


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raises `InvalidRequest` for what must not be used. What is no schema at all, llguidance says."""
    for part in _subschemas(schema):
        _check_property_count(part)
        _check_bounds(part, schema)


def _check_property_count(part: Mapping[str, Any]) -> None:
    least, required = part.get("minProperties"), part.get("required")
    named = len(required) if isinstance(required, list) else 0
    if isinstance(least, int | float) and least > named + 1:
        raise _unsupported("minProperties above the number of required properties and one")


def _check_bounds(part: Mapping[str, Any], root: Mapping[str, Any]) -> None:
    bounds: dict[str, list[float]] = {name: [] for name in (*_LOWER, *_UPPER)}
    for each in _same_place(part, root):
        for name, values in bounds.items():
            value = each.get(name)
            if isinstance(value, int | float) and _is_bound(value):
                values.append(value)
    if any(abs(value) >= _EXACT for values in bounds.values() for value in values):
        raise _unsupported("a bound of 2^53 or more")
    lower, upper = ([value for name in names for value in bounds[name]] for names in (_LOWER, _UPPER))
    for value in bounds["exclusiveMinimum"]:
        if value == int(value) and any(value < most < value + 1 for most in upper):
            raise _unsupported(f"exclusiveMinimum {value:g} with an upper bound below {value + 1:g}")
    for value in bounds["exclusiveMaximum"]:
        if value == int(value) and any(value - 1 < least < value for least in lower):
            raise _unsupported(f"exclusiveMaximum {value:g} with a lower bound above {value - 1:g}")


def _subschemas(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """`schema` and all schemas in it."""
    pending: list[Any] = [schema]
    while pending:
        part = pending.pop()
        if not isinstance(part, Mapping):
            continue
        yield part
        for name, kind in _SUBSCHEMAS.items():
            found = part.get(name)
            if isinstance(found, Mapping) and kind is dict:
                pending.extend(found.values())
            elif isinstance(found, list):
                pending.extend(found)
            else:
                pending.append(found)


def _same_place(part: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schemas that the same value must, or may have to, be valid under."""
    pending: list[Any] = [part]
    seen: set[int] = set()
    while pending:
        each = pending.pop()
        if not isinstance(each, Mapping) or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        for name in _SAME_PLACE:
            if isinstance(options := each.get(name), list):
                pending.extend(options)
        pending.append(_referred(each.get("$ref"), root))


def _referred(reference: Any, root: Mapping[str, Any]) -> Any:
    """The schema at a reference within `root`, None if there is none."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found: Any = root
    for step in reference[1:].split("/")[1:]:
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def _is_bound(value: float) -> bool:
    return not isinstance(value, bool) and math.isfinite(value)


def _unsupported(what: str) -> InvalidRequest:
    return InvalidRequest(f"The constraint cannot be served: {what} is not supported.", param="json_schema")
