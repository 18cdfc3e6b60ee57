"""From plain values to Structs, with every problem found at once and each at its place.

`msgspec` checks types and ranges, one level at a time from the inside out, so that each of its
complaints belongs to exactly one key. The words of the complaints are ours, because the readers
write TOML and not Python.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Struct, ValidationError

from fastchat_serve.config import Secret
from fastchat_serve.configfile.describe import choices, is_shaped, what_is_expected, what_it_is
from fastchat_serve.configfile.places import KeyPath, Places
from fastchat_serve.errors import ConfigError

__all__ = ["Decoder", "absolute", "nearest"]

_INVALID: Final = object()
"""Stands for a value with a problem, which has been noted."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint, with a leading space: what of `known` may have been meant; empty if nothing is close."""
    matches = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f' Did you mean "{matches[0]}"?' if matches else ""


def absolute(path: str, directory: Path) -> Path:
    """`path`, with a leading ``~`` resolved and relative to `directory`. Raises `ValueError`."""
    try:
        return Path(os.path.normpath(directory / Path(path).expanduser()))
    except RuntimeError as error:  # the home of a user there is not
        raise ValueError(str(error)) from None


class Decoder:
    """Turns the values of one document into Structs, and collects what is wrong in `problems`."""

    def __init__(self, places: Places) -> None:
        self.problems: list[ConfigError] = []
        self._places = places

    def decode(self, value: Any, annotation: Any, path: KeyPath) -> Any:
        """`value` as the type `annotation`. Meaningless if a problem was noted."""
        inner = _matching_member(annotation, value)
        items_of = get_args(inner)
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, Struct):
            value = self._table(value, inner, path)
        elif isinstance(value, dict) and items_of and _is_table(inner):
            decoded = {key: self.decode(item, items_of[1], (*path, key)) for key, item in value.items()}
            value = _INVALID if _INVALID in decoded.values() else decoded
        elif isinstance(value, list) and items_of and _is_list(inner):
            items = [self.decode(item, items_of[0], (*path, index)) for index, item in enumerate(value)]
            value = _INVALID if _INVALID in items else items
        return value if value is _INVALID else self._convert(value, annotation, path)

    def _table(self, table: dict[str, Any], kind: type[Struct], path: KeyPath) -> Any:
        """The fields of `kind`, decoded one by one."""
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        tag_field = kind.__struct_config__.tag_field
        decoded = {}
        for key, value in table.items():
            if key in fields:
                decoded[key] = self.decode(value, fields[key].type, (*path, key))
            elif key == tag_field:
                decoded[key] = value
            else:
                allowed = ", ".join(fields) or "none"
                problem = f"unknown key.{nearest(key, fields)} Allowed here: {allowed}."
                decoded[key] = self._note((*path, key), problem, "key")
        for key, field in fields.items():
            if key not in table and field.default is NODEFAULT and field.default_factory is NODEFAULT:
                decoded[key] = self._note((*path, key), f"missing: expected {what_is_expected(field.type)}.")
        return _INVALID if _INVALID in decoded.values() else decoded

    def _convert(self, value: Any, annotation: Any, path: KeyPath) -> Any:
        """One level: what is inside a list or a table has been converted before."""
        place = self._places.of(path)

        def read_custom(kind: type, text: Any) -> Any:
            if isinstance(text, kind):
                return text  # converted one level further in
            if not isinstance(text, str):
                raise TypeError
            if kind is Secret:
                return Secret(text)
            if issubclass(kind, Path):
                return absolute(text, place.directory)
            raise NotImplementedError(f"{kind} cannot be used in a config")

        try:
            return msgspec.convert(value, annotation, str_keys=True, dec_hook=read_custom)
        except ValidationError as error:
            complaint = _complaint(value, annotation, error)
        if place.text is not None and path in self._places.values and not isinstance(value, dict | list):
            with suppress(ValidationError):  # an override such as token=123 is a number only by its looks
                return msgspec.convert(place.text, annotation, str_keys=True, dec_hook=read_custom)
            if isinstance(value, str) and _is_list(_matching_member(annotation, value)):
                complaint += """ A list is written so: '["a", "b"]'."""
        return self._note(path, complaint)

    def _note(self, path: KeyPath, problem: str, part: Literal["key", "value"] = "value") -> object:
        self.problems.append(self._places.error(path, problem, part))
        return _INVALID


def _matching_member(annotation: Any, value: Any) -> Any:
    """`annotation` without constraints; of a union, the member that `value` can only be meant for."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    members = [_matching_member(member, value) for member in get_args(annotation) if member is not NoneType]
    fitting = [member for member in members if _is_table(member) == isinstance(value, dict)]
    return fitting[0] if len(fitting) == 1 else annotation


def _is_table(kind: Any) -> bool:
    plain = get_origin(kind) or kind
    return isinstance(plain, type) and issubclass(plain, Struct | Mapping)


def _is_list(kind: Any) -> bool:
    """Whether all items of `kind` have one type."""
    plain = get_origin(kind)
    if plain is tuple:
        return get_args(kind)[1:] == (...,)
    return isinstance(plain, type) and issubclass(plain, Collection) and not issubclass(plain, Mapping)


def _complaint(value: Any, annotation: Any, error: ValidationError) -> str:
    """`error` in the words of TOML."""
    if isinstance(error.__cause__, ValueError):
        return str(error.__cause__)  # from a type of ours, or the last word of a Struct about itself
    if " - at `" in str(error):
        return str(error)  # a key of another type, or inside a union of tables: only msgspec knows what it tried
    if isinstance(value, str) and (known := choices(annotation)):
        return f"expected {what_is_expected(annotation)}.{nearest(value, known)}"
    if isinstance(value, str) and value and is_shaped(annotation):
        return f"expected {what_is_expected(annotation)}."
    return f"expected {what_is_expected(annotation)}, not {what_it_is(value, annotation)}."
