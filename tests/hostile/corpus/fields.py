"""F33, S8: every field of every request with values of the wrong kind and numbers out of its range.

Made out of the wire types themselves, so a new field is attacked from the day it is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct, inspect

from fastchat_serve.protocol import openai as wire
from tests.hostile.case import CHAT, COMPLETIONS, EMBEDDINGS, Case, post

__all__ = ["CASES", "REQUESTS", "shortest"]

REQUESTS: dict[str, type[Struct]] = {
    CHAT: wire.ChatCompletionRequest,
    COMPLETIONS: wire.CompletionRequest,
    EMBEDDINGS: wire.EmbeddingRequest,
}

KINDS: dict[str, Any] = {"true": True, "7": 7, "1.5": 1.5, "a string": "x", "an array": [], "an object": {}}
"""One value of every kind that JSON has, null aside."""

WILD: dict[str, Any] = {"2⁶⁴": 2**64, "-2⁶⁴": -(2**64), "1e308": 1e308, "-1e308": -1e308, "10³⁰": 10**30}

LITERALS = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000]
"""Numbers that are none, or that no decoder should try to make."""


class Slot(Struct, frozen=True):
    """A place in a request: how errors call it, its type, and a good request with anything put there."""

    path: str
    type: inspect.Type
    body: Any

    def with_value(self, value: Any) -> Any:
        return _filled(self.body, value)


HOLE = object()
"""Where the value of a `Slot` goes."""


def slots(request: type[Struct]) -> Iterator[Slot]:
    """All places of `request`, those within its fields included."""
    yield from _within("", inspect.type_info(request), HOLE)


def shortest(kind: inspect.Type) -> Any:
    """A small valid value, as JSON has it."""
    match kind:
        case inspect.UnionType(types=types):
            return shortest(next(one for one in types if not isinstance(one, inspect.NoneType)))
        case inspect.StructType(fields=fields, tag=tag, tag_field=tag_field):
            tagged = {tag_field: tag} if tag_field else {}
            return tagged | {field.encode_name: shortest(field.type) for field in fields if field.required}
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.VarTupleType(item_type=item, min_length=least):
            return [shortest(item)] * (least or 0)
        case inspect.DictType() | inspect.AnyType():
            return {}
        case inspect.IntType(ge=least) | inspect.FloatType(ge=least):
            return 1 if least is None else max(least, 0)
        case inspect.BoolType():
            return False
        case inspect.StrType():
            return "echo"
    raise NotImplementedError(kind)


def _within(path: str, kind: inspect.Type, body: Any) -> Iterator[Slot]:
    if path:
        yield Slot(path, kind, body)
    for one in kind.types if isinstance(kind, inspect.UnionType) else [kind]:
        match one:
            case inspect.StructType(fields=fields):
                around = shortest(one)
                for field in fields:
                    inner = f"{path}.{field.encode_name}".removeprefix(".")
                    yield from _within(inner, field.type, _filled(body, around | {field.encode_name: HOLE}))
            case inspect.VarTupleType(item_type=item):
                yield from _within(f"{path}[0]", item, _filled(body, [HOLE]))
            case inspect.DictType(value_type=value, key_type=key) if not isinstance(value, inspect.AnyType):
                name = "7" if isinstance(key, inspect.IntType) else "x"
                yield from _within(f"{path}[...]", value, _filled(body, {name: HOLE}))


def _filled(body: Any, value: Any) -> Any:
    """`body` with `value` in its hole."""
    if body is HOLE:
        return value
    if isinstance(body, dict):
        return {key: _filled(item, value) for key, item in body.items()}
    return [_filled(item, value) for item in body] if isinstance(body, list) else body


def _takes(kind: inspect.Type, value: Any) -> bool:
    """Whether this kind of JSON value, whatever it is, has a place in `kind`."""
    match kind:
        case inspect.UnionType(types=types):
            return any(_takes(one, value) for one in types)
        case inspect.AnyType():
            return True
        case inspect.NoneType():
            return value is None
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.IntType() | inspect.FloatType():
            return (
                isinstance(value, int | (float if isinstance(kind, inspect.FloatType) else int)) and value is not True
            )
        case inspect.StrType():
            return isinstance(value, str)
        case inspect.VarTupleType(min_length=least):
            return isinstance(value, list) and not least
        case inspect.DictType() | inspect.StructType():
            return isinstance(value, dict)
    return False


def _wrong_kinds(path: str, request: type[Struct]) -> Iterator[tuple[str, Case]]:
    for slot in slots(request):
        for name, value in KINDS.items():
            if not _takes(slot.type, value):
                yield f"{path} with {name} for {slot.path}", _refused(path, slot, json.dumps(slot.with_value(value)))
        if not _takes(slot.type, None):
            yield f"{path} with null for {slot.path}", _refused(path, slot, json.dumps(slot.with_value(None)))


def _wild_numbers(path: str, request: type[Struct]) -> Iterator[tuple[str, Case]]:
    for slot in slots(request):
        types = slot.type.types if isinstance(slot.type, inspect.UnionType) else [slot.type]
        for kind in types:
            if isinstance(kind, inspect.IntType | inspect.FloatType):
                for name, value in WILD.items() | _beyond(kind).items():
                    yield (
                        f"{path} with {name} for {slot.path}",
                        _refused(path, slot, json.dumps(slot.with_value(value))),
                    )
                for literal in LITERALS:
                    body = json.dumps(slot.with_value("HOLE")).replace('"HOLE"', literal)
                    yield f"{path} with {literal[:9]} for {slot.path}", Case(400, post(path, body.encode()))


def _beyond(kind: inspect.IntType | inspect.FloatType) -> dict[str, Any]:
    """The nearest numbers out of range."""
    step: float = 1 if isinstance(kind, inspect.IntType) else 2**-20
    bounds = {
        "less than least": None if kind.ge is None else kind.ge - step,
        "its bound": kind.gt,
        "more than most": None if kind.le is None else kind.le + step,
    }
    return {name: value for name, value in bounds.items() if value is not None}


def _missing_fields(path: str, request: type[Struct]) -> Iterator[tuple[str, Case]]:
    good = shortest(inspect.type_info(request))
    for field in msgspec.structs.fields(request):
        if field.required:
            rest = {name: value for name, value in good.items() if name != field.encode_name}
            yield f"{path} without {field.encode_name}", Case(400, post(path, rest))


def _refused(path: str, slot: Slot, body: str) -> Case:
    return Case(400, post(path, body.encode()), slot.path)


CASES = {
    name: case
    for path, request in REQUESTS.items()
    for attacks in (_wrong_kinds, _wild_numbers, _missing_fields)
    for name, case in attacks(path, request)
}
