"""``${VAR}`` in the strings of a config file.

``${VAR}``           the variable; an error if it is not set
``${VAR:-default}``  the variable, or the text after ":-" if it is not set or empty
``$${``              a plain ``${``

Only values are looked at, never keys. What a variable holds stays a string: it is neither read as
TOML nor searched for further ``${…}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fastchat_serve.configfile.places import KeyPath, Places
from fastchat_serve.errors import ConfigError

__all__ = ["interpolate"]

_REFERENCE = re.compile(r"\$\$\{|\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\})?")


def interpolate(tables: dict[str, Any], places: Places, environ: Mapping[str, str]) -> Iterator[ConfigError]:
    """Replace references in all strings of `tables` that come from a file, in place; yield what is wrong.

    Values from the environment and from ``--set`` are left alone: the shell had its turn with those.
    """
    return _inside(tables, (), places, environ)


def _inside(node: Any, path: KeyPath, places: Places, environ: Mapping[str, str]) -> Iterator[ConfigError]:
    for step, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        inner = (*path, step)
        if isinstance(value, dict | list):
            yield from _inside(value, inner, places, environ)
        elif isinstance(value, str) and "${" in value and places.of(inner).line is not None:
            try:
                node[step] = _REFERENCE.sub(lambda found: _resolve(found, environ), value)
            except LookupError as error:
                yield places.error(inner, error.args[0])


def _resolve(found: re.Match[str], environ: Mapping[str, str]) -> str:
    """The text in place of one reference. Raises `LookupError` that says what is wrong."""
    name, default = found["name"], found["default"]
    if found[0] == "$${":
        return "${"
    if name is None:
        raise LookupError("after ${ comes a variable's name and }, as in ${HOME}; write $${ for a plain ${")
    value = environ.get(name)
    if default is not None:
        return value or default
    if value is None:
        raise LookupError(f"the environment variable {name} is not set; set it, or write ${{{name}:-default}}")
    return value
