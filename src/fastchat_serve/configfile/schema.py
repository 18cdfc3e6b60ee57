"""The JSON Schema of the config, for editors that complete and check TOML."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, get_args

import msgspec
from msgspec import Struct

from fastchat_serve.config import Tables, Worker

__all__ = ["config_json_schema", "field_docs"]


def config_json_schema(options: Mapping[str, type[Struct]] | None = None) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a config file.

    `options` has, by backend, the Struct of ``[worker.options]``: a worker of that backend is then
    checked against it, a worker of any other may have any options.
    """
    backends = options or {}
    kinds = _structs_within((Tables, *backends.values()))
    references, definitions = msgspec.json.schema_components(
        kinds, schema_hook=_schema_of_custom, ref_template="#/$defs/{name}"
    )
    reference_of = dict(zip(kinds, references, strict=True))
    for kind, reference in reference_of.items():
        properties = definitions[_name(reference)]["properties"]
        for key, text in field_docs(kind).items():
            properties[key].setdefault("description", text)
    if backends:
        definitions[_name(reference_of[Worker])]["allOf"] = [
            {
                "if": {"properties": {"backend": {"const": backend}}, "required": ["backend"]},
                "then": {"properties": {"options": reference_of[kind]}},
            }
            for backend, kind in backends.items()
        ]
    root = definitions.pop(_name(reference_of[Tables]))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **root,
        "title": "fastchat-serve",
        "$defs": definitions,
    }


def field_docs(kind: type[Struct]) -> dict[str, str]:
    """The docstring under each field of `kind`, by the name the field has in TOML.

    They are read from the source, which Python itself does not keep; without source there are none.
    """
    encoded = {field.name: field.encode_name for field in msgspec.structs.fields(kind)}
    docs = {}
    for owner in reversed([base for base in kind.__mro__ if issubclass(base, Struct) and base is not Struct]):
        try:
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        except (OSError, TypeError):
            continue
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for field, doc in pairwise(statements):
            match field, doc:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docs[encoded[name]] = inspect.cleandoc(text)
    return docs


def _structs_within(kinds: Iterable[Any]) -> list[type[Struct]]:
    """The Structs among `kinds`, and those that their fields are made of, each once."""
    found: dict[type[Struct], None] = {}
    waiting = list(kinds)
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and issubclass(kind, Struct) and kind not in found:
            found[kind] = None
            waiting += [field.type for field in msgspec.structs.fields(kind)]
        waiting += get_args(kind)
    return list(found)


def _name(reference: dict[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _schema_of_custom(kind: type) -> dict[str, Any]:
    """The types that msgspec does not know, `Secret` and `Path`, are strings in TOML."""
    return {"type": "string"}
