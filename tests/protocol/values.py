"""hypothesis strategies for JSON that fits a type, made from what msgspec knows of the type."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import Struct, inspect

__all__ = ["ANY_JSON", "damaged", "json_of", "structs_of"]

TEXT = st.text(max_size=8) | st.text('"\\[]{}\n\0é日😀', max_size=8)
ANY_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def structs_of(module: Any) -> dict[str, type[Struct]]:
    """All Structs that a module defines, by name."""
    return {
        name: kind
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, Struct) and kind.__module__ == module.__name__
    }


def json_of(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Values as a JSON parser gives them that decode to `kind`."""
    match kind:
        case inspect.UnionType(types=types):
            return st.one_of([json_of(one) for one in types if not isinstance(one, inspect.CustomType)])
        case inspect.StructType(cls=cls, fields=fields, tag=tag, tag_field=tag_field):
            required = {field.encode_name: json_of(field.type) for field in fields if field.required}
            optional = {field.encode_name: json_of(_set(field.type)) for field in fields if not field.required}
            tagged = {tag_field: st.just(tag)} if tag_field else {}
            assert issubclass(cls, Struct)
            return st.fixed_dictionaries(tagged | required, optional=optional)
        case (
            inspect.VarTupleType(item_type=item, min_length=least) | inspect.ListType(item_type=item, min_length=least)
        ):
            return st.lists(json_of(item), min_size=least or 0, max_size=(least or 0) + 3)
        case inspect.TupleType(item_types=items):
            return st.tuples(*map(json_of, items)).map(list)
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(json_of(key).map(str), json_of(value), max_size=3)
        case inspect.IntType(ge=least, le=most):
            return st.integers(least, most) if most is not None else st.integers(-(2**63), 2**63 - 1)
        case inspect.FloatType(ge=least, gt=above, le=most):
            lowest = above if least is None else least
            return st.floats(lowest, most, exclude_min=above is not None, allow_nan=False, allow_infinity=False)
    return _plain(kind)


def _plain(kind: inspect.Type) -> st.SearchStrategy[Any]:
    match kind:
        case inspect.StrType(min_length=least):
            return TEXT if least is None else TEXT.map(lambda text: text or "x" * least)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.AnyType():
            return ANY_JSON
        case inspect.LiteralType(values=values):
            return st.sampled_from(values)
    raise NotImplementedError(kind)


def _set(kind: inspect.Type) -> inspect.Type:
    """`kind` without UNSET, which is no JSON."""
    if not isinstance(kind, inspect.UnionType):
        return kind
    types = tuple(one for one in kind.types if getattr(one, "cls", None) is not msgspec.UnsetType)
    return inspect.UnionType(types) if len(types) > 1 else types[0]


@st.composite
def damaged(draw: st.DrawFn, good: st.SearchStrategy[Any]) -> bytes:
    """JSON that was good, with anything at all in one place of it; or some bytes of it changed."""
    body = json.dumps(_changed(draw, draw(good)), ensure_ascii=draw(st.booleans())).encode(errors="replace")
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(max_size=3)) + body[at + draw(st.integers(0, 3)) :]
    return body


def _changed(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        return value | {key: _changed(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], _changed(draw, value[at]), *value[at + 1 :]]
    return draw(ANY_JSON)
