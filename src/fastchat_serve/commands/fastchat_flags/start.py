"""Print the config that flags mean, and run it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastchat_serve.commands.fastchat_flags.tables import Meaning
from fastchat_serve.commands.serve import serve_config
from fastchat_serve.configfile.load import config_from_tables

__all__ = ["as_toml", "start"]

HEADING = """\
# These flags mean this config. To keep it: put it into a file, and start with fastchat-serve --config FILE
"""
REASONS = "# `fastchat-serve docs fastchat-flags` says why, and what there is instead."


def start(meaning: Meaning, overrides: Sequence[str]) -> int:
    """Serve until a signal. Raises `StartupError`."""
    hint = [HEADING + as_toml(_without_secrets(meaning.tables))]
    environ = meaning.environ | dict.fromkeys(_key_variables(meaning.tables), "(the key)")
    hint += [f"# In the environment: {name}={value}" for name, value in environ.items()]
    hint += [f"# {note}." for note in meaning.notes]
    hint += [REASONS] if meaning.notes else []
    print("\n".join(hint), file=sys.stderr, flush=True)
    os.environ.update(meaning.environ)
    return serve_config(config_from_tables(meaning.tables, overrides=overrides, environ=os.environ))


def as_toml(tables: Mapping[str, Any]) -> str:
    """`tables` as a config file has them."""
    return "\n".join(line for name, table in tables.items() for line in _lines(name, table))


def _lines(name: str, table: Any) -> Iterator[str]:
    for each in table if isinstance(table, list) else [table]:
        yield f"[[{name}]]" if isinstance(table, list) else f"[{name}]"
        yield from (f"{key} = {_value(value)}" for key, value in each.items())
        yield ""


def _value(value: Any) -> str:
    """TOML's strings, numbers and booleans are written as JSON's."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)


def _key(key: str) -> str:
    return key if key.replace("_", "").isalpha() else json.dumps(key)


def _without_secrets(tables: Mapping[str, Any]) -> dict[str, Any]:
    """What is good for a file as it is: with variables in place of API keys."""
    variables = _key_variables(tables)
    if not variables:
        return dict(tables)
    return {**tables, "api": {**tables["api"], "keys": [f"${{{name}}}" for name in variables]}}


def _key_variables(tables: Mapping[str, Any]) -> list[str]:
    keys = tables.get("api", {}).get("keys", ())
    return [f"FASTCHAT_KEY_{number}" if number > 1 else "FASTCHAT_KEY" for number, _ in enumerate(keys, 1)]
