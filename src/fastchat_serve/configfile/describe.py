"""Types and values in the words of someone who writes TOML."""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct, inspect

__all__ = ["choices", "is_shaped", "what_is_expected", "what_it_is"]


def what_is_expected(annotation: Any) -> str:
    """For instance ``an integer from 0 to 65535``."""
    return _expected(inspect.type_info(annotation))


def choices(annotation: Any) -> list[str]:
    """The strings that `annotation` allows, if it lists them."""
    return [choice for choice in _choices(inspect.type_info(annotation)) if isinstance(choice, str)]


def is_shaped(annotation: Any) -> bool:
    """Whether it is a string of a certain form, so that one of another form is not wrong for being a string."""
    return _is_shaped(inspect.type_info(annotation))


def what_it_is(value: Any, annotation: Any) -> str:
    """For instance ``70000`` or ``a string``. Only numbers are shown, and none where a secret belongs."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        shown = repr(value) if isinstance(value, float) or abs(value) < 10**18 else "a huge number"
        return "a number" if _is_custom(inspect.type_info(annotation)) else shown
    if isinstance(value, str):
        return "a string" if value else "an empty string"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return "a table" if isinstance(value, dict | Struct) else "a date or time"


def _expected(info: inspect.Type) -> str:
    match info:
        case inspect.Metadata(type=inner, extra_json_schema=schema):
            title = (schema or {}).get("title")
            return title if isinstance(title, str) else _expected(inner)
        case inspect.UnionType(types=members):
            return " or ".join(_expected(member) for member in members if not isinstance(member, inspect.NoneType))
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "an integer" + _range(info)
        case inspect.FloatType():
            return "a number" + _range(info)
        case inspect.StrType(pattern=str(pattern)):
            return f"a string that matches {pattern}"
        case inspect.StrType(min_length=int(length)) if length > 0:
            return "a string that is not empty"
        case inspect.StrType() | inspect.CustomType():
            return "a string"
        case inspect.LiteralType() | inspect.EnumType():
            return "one of " + ", ".join(json.dumps(choice) for choice in _choices(info))
        case inspect.StructType() | inspect.DictType():
            return "a table"
        case inspect.AnyType():
            return "a value"
        case inspect.VarTupleType(item_type=item) | inspect.CollectionType(item_type=item):
            least = f" of at least {info.min_length}" if info.min_length else ""
            return f"a list{least} (each item: {_expected(item)})"
        case _:
            return f"a value of type {type(info).__name__.removesuffix('Type').lower()}"


def _range(info: inspect.IntType | inspect.FloatType) -> str:
    if info.ge is not None and info.le is not None:
        return f" from {info.ge} to {info.le}"
    bounds = (("above", info.gt), ("of at least", info.ge), ("below", info.lt), ("of at most", info.le))
    text = " and ".join(f"{words} {bound}" for words, bound in bounds if bound is not None)
    return f" {text}" if text else ""


def _choices(info: inspect.Type) -> list[Any]:
    match info:
        case inspect.Metadata(type=inner):
            return _choices(inner)
        case inspect.UnionType(types=members):
            return [choice for member in members for choice in _choices(member)]
        case inspect.LiteralType(values=values):
            return list(values)
        case inspect.EnumType(cls=kind):
            return [member.value for member in kind]
        case _:
            return []


def _is_shaped(info: inspect.Type) -> bool:
    match info:
        case inspect.Metadata(type=inner):
            return _is_shaped(inner)
        case inspect.UnionType(types=members):
            return any(_is_shaped(member) for member in members)
        case _:
            return isinstance(info, inspect.StrType) and info.pattern is not None


def _is_custom(info: inspect.Type) -> bool:
    match info:
        case inspect.Metadata(type=inner):
            return _is_custom(inner)
        case inspect.UnionType(types=members):
            return any(_is_custom(member) for member in members)
        case _:
            return isinstance(info, inspect.CustomType)
