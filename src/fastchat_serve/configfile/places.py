"""Where each value of a config was written, so that every complaint can point at it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from msgspec import Struct

from fastchat_serve.errors import ConfigError

__all__ = ["KeyPath", "Place", "Places", "dotted"]

KeyPath = tuple[str | int, ...]
"""The way to a value: ``("worker", 0, "options", "device")``. List items count from 0."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def dotted(path: KeyPath) -> str:
    """The key as errors and ``--set`` write it: ``worker.0.options.device``; quoted where TOML must."""
    return ".".join(str(step) if _BARE.fullmatch(str(step)) else json.dumps(step) for step in path)


class Place(Struct, frozen=True):
    """Where one key or value was written."""

    file: str
    """A path, ``--set KEY``, or the name of an environment variable."""
    line: int | None = None
    column: int | None = None
    """Both one-based, in characters; None outside a file."""
    directory: Path = Path()
    """Relative paths in the value are meant from here."""
    text: str | None = None
    """Outside a file: the value as it was typed, for keys that turn out to be strings."""


class Places(Struct, frozen=True):
    """The places of a whole config. What has none of its own stands where its parent does."""

    whole: Place = Place("config")
    """For what was written nowhere: the file, at its first character."""
    keys: Mapping[KeyPath, Place] = {}
    values: Mapping[KeyPath, Place] = {}

    def of(self, path: KeyPath, part: Literal["key", "value"] = "value") -> Place:
        """The place of `path`, or of the nearest key around it."""
        if part == "key" and path in self.keys:
            return self.keys[path]
        while path and path not in self.values:
            path = path[:-1]
        return self.values[path] if path else self.whole

    def error(self, path: KeyPath, problem: str, part: Literal["key", "value"] = "value") -> ConfigError:
        """An error, to be raised, that points at the key `path` or at its value."""
        place = self.of(path, part)
        return ConfigError(problem, file=place.file, line=place.line, column=place.column, key=dotted(path) or None)

    def __repr__(self) -> str:
        return f"Places({self.whole.file!r})"  # the rest is long, and `Place.text` may be a secret
