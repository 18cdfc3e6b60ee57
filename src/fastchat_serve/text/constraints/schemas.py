"""What of JSON Schema is refused here, by name, since llguidance would serve it too freely.

It refuses the keywords that it does not know by itself. What it takes and gets wrong was found by comparing answers
with a validator: ranges of numbers within one unit whose bound is excluded, integers that a float cannot hold, and
counts of properties, where a name may be written twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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


def check_schema(schema: Mapping[str, Any], param: str) -> None:
    """Raises `InvalidRequest` about `param` for what must not be used. What is no schema at all, llguidance says."""
    parts = list(_subschemas(schema))
    problems = [*map(_property_count, parts), *map(_bounds, _groups(parts, schema))]
    for problem in filter(None, problems):
        raise InvalidRequest(f"The constraint cannot be served: {problem} is not supported.", param=param)


def _property_count(part: Mapping[str, Any]) -> str | None:
    least, required = part.get("minProperties"), part.get("required")
    named = len(required) if isinstance(required, list) else 0
    if isinstance(least, int | float) and least > named + 1:
        return "minProperties above the number of required properties and one"
    return None


def _bounds(group: Sequence[Mapping[str, Any]]) -> str | None:
    """`group`: schemas that may hold for the same number."""
    bounds: dict[str, set[float]] = {name: set() for name in (*_LOWER, *_UPPER)}
    for part in group:
        for name, values in bounds.items():
            value = part.get(name)
            if isinstance(value, int | float) and _is_bound(value):
                values.add(value)
    if any(abs(value) >= _EXACT for values in bounds.values() for value in values):
        return "a bound of 2^53 or more"
    lower, upper = ({value for name in names for value in bounds[name]} for names in (_LOWER, _UPPER))
    above, below = (
        {math.floor(value) for value in upper if value % 1},
        {math.ceil(value) for value in lower if value % 1},
    )
    for value in bounds["exclusiveMinimum"] & above:
        return f"exclusiveMinimum {value:g} with an upper bound below {value + 1:g}"
    for value in bounds["exclusiveMaximum"] & below:
        return f"exclusiveMaximum {value:g} with a lower bound above {value - 1:g}"
    return None


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


def _groups(parts: Sequence[Mapping[str, Any]], root: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    """Those of `parts` together that refer to, or are combined with, each other."""
    leaders: dict[int, int] = {id(part): id(part) for part in parts}

    def leader(key: int) -> int:
        while leaders[key] != key:
            leaders[key] = leaders[leaders[key]]  # which makes the way shorter for the next
            key = leaders[key]
        return key

    for part in parts:
        others = [option for name in _SAME_PLACE if isinstance(part.get(name), list) for option in part[name]]
        for other in (*others, _referred(part.get("$ref"), root)):
            if id(other) in leaders:
                leaders[leader(id(other))] = leader(id(part))
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for part in parts:
        groups.setdefault(leader(id(part)), []).append(part)
    return list(groups.values())


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
