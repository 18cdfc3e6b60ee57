"""The three sources of a config, laid over each other: file, then environment, then ``--set``.

The result is one `Document`: plain values as TOML has them, and the place of each.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastchat_serve.configfile.locate import Spot, locate, split_key
from fastchat_serve.configfile.places import KeyPath, Place, Places, dotted
from fastchat_serve.errors import ConfigError

__all__ = ["ENVIRONMENT_PREFIX", "Document", "apply_environment", "apply_override", "read_text", "read_toml"]

ENVIRONMENT_PREFIX = "FASTCHAT_SERVE_"

# Kubernetes describes a Service called "fastchat-serve" to every pod in variables of our prefix.
_KUBERNETES = re.compile(r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?")

_TOMLLIB_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_INDEX = re.compile(r"[0-9]{1,6}")


class Document:
    """What the sources say together, not typed yet."""

    def __init__(self, whole: Place, tables: dict[str, Any] | None = None) -> None:
        self.whole = whole
        self.tables: dict[str, Any] = {} if tables is None else tables
        self.keys: dict[KeyPath, Place] = {}
        self.values: dict[KeyPath, Place] = {}

    @property
    def places(self) -> Places:
        return Places(self.whole, self.keys, self.values)

    def set(self, steps: Sequence[str], value: Any, place: Place) -> None:
        """Put `value` at `steps`, over what was there; tables and list items on the way are created."""
        *around, last = steps
        node: Any = self.tables
        path: KeyPath = ()
        for step, following in zip(around, steps[1:], strict=True):
            path = (*path, _child(node, path, step, place))
            if not _has(node, path[-1]):
                self._put(node, path, [] if _INDEX.fullmatch(following) else {}, place)
            node = node[path[-1]]
        path = (*path, _child(node, path, last, place))
        self._forget(path)
        self._put(node, path, value, place)

    def _put(self, node: Any, path: KeyPath, value: Any, place: Place) -> None:
        if isinstance(node, list) and path[-1] == len(node):
            node.append(value)
        else:
            node[path[-1]] = value
        self.keys[path] = self.values[path] = place

    def _forget(self, path: KeyPath) -> None:
        """Drop the places of what is about to be replaced."""
        for known in (self.keys, self.values):
            for inner in [inner for inner in known if inner[: len(path)] == path]:
                del known[inner]


def _child(node: Any, path: KeyPath, step: str, place: Place) -> str | int:
    """`step` as a key of the table, or an index of the list, that `node` at `path` is."""
    if isinstance(node, dict):
        return step
    if isinstance(node, list):
        if _INDEX.fullmatch(step) and int(step) <= len(node):
            return int(step)
        problem = f"{dotted(path)} is a list of {len(node)}: items are numbered from 0, the next is {len(node)}."
    else:
        problem = f"{dotted(path)} is a single value, so it has no key {dotted((step,))}."
    raise ConfigError(problem, file=place.file, key=dotted((*path, step)))


def _has(node: Any, child: str | int) -> bool:
    return child in node if isinstance(node, dict) else int(child) < len(node)


def read_toml(path: Path) -> Document:
    """Read the file `path`, and find the place of everything in it."""
    text = read_text(path)
    whole = Place(str(path), 1, 1, directory=path.absolute().parent)
    try:
        document = Document(whole, tomllib.loads(text))
        spots = locate(text)
    except RecursionError:
        raise ConfigError("lists or tables are nested too deeply", file=whole.file, line=1, column=1) from None
    except ValueError as error:  # tomllib's own, and Python's for integers of thousands of digits
        raise _not_toml(str(error), text, whole.file) from None
    document.keys = {key: _at(spot, whole) for key, spot in spots.keys.items()}
    document.values = {key: _at(spot, whole) for key, spot in spots.values.items()}
    return document


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with plain line ends and no byte order mark."""
    try:
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except IsADirectoryError:
        raise ConfigError("this is a folder; name a file in it", file=str(path)) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"cannot read this file: {reason}", file=str(path)) from None
    try:
        return raw.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode().replace("\r\n", "\n")
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        key = dotted(locate(before).last) or None
        problem = f"not UTF-8: byte 0x{raw[error.start]:02x}. Save the file as UTF-8"
        raise ConfigError(problem, file=str(path), line=line, column=column, key=key) from None


def apply_environment(document: Document, environ: Mapping[str, str]) -> None:
    """Lay the variables ``FASTCHAT_SERVE_…`` over `document`; "__" stands for a dot, case does not count."""
    settings = {}
    for variable, text in environ.items():
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name != variable and not _KUBERNETES.fullmatch(name):
            settings[tuple(name.lower().split("__"))] = (variable, text)
    # Item 2 comes before item 10, and a whole table before its keys.
    for steps in sorted(settings, key=lambda steps: [step.zfill(6) if step.isdecimal() else step for step in steps]):
        variable, text = settings[steps]
        _apply(document, steps, text, Place(variable, directory=Path.cwd(), text=text))


def apply_override(document: Document, override: str) -> None:
    """Lay one ``--set table.key=value`` over `document`."""
    found = split_key(override)
    if found is None:
        shown = override.partition("=")[0]  # what follows may be a secret
        raise ConfigError("expected KEY=VALUE, such as server.port=9000", file=f"--set {shown}")
    steps, text = found
    _apply(document, steps, text.strip(), Place(f"--set {dotted(steps)}", directory=Path.cwd(), text=text.strip()))


def _apply(document: Document, steps: Sequence[str], text: str, place: Place) -> None:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        if text.startswith(('"', "'", "[", "{")):
            problem = "not a TOML value: a list, a table or a quoted string is not closed or not well-formed"
            raise ConfigError(problem, file=place.file, key=dotted(tuple(steps))) from None
        parsed = {"value": text}
    # A line break could smuggle in more keys: such a text is no TOML value but a string.
    document.set(steps, parsed["value"] if parsed.keys() == {"value"} else text, place)


def _at(spot: Spot, whole: Place) -> Place:
    return Place(whole.file, *spot, directory=whole.directory)


def _not_toml(message: str, text: str, file: str) -> ConfigError:
    """`tomllib`'s complaint, with its place and the key it is about."""
    found = _TOMLLIB_PLACE.search(message)
    problem = _TOMLLIB_PLACE.sub("", message)
    if found is not None and found[1]:
        line, column = int(found[1]), int(found[2])
        read = "\n".join([*text.split("\n")[: line - 1], text.split("\n")[line - 1][: column - 1]])
    else:
        line, column, read = text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1, text
    spots = locate(read)
    if problem.startswith("Cannot") or found is None:  # a key set twice, or an integer beyond reason:
        line, column = spots.keys.get(spots.last, (1, 1))  # the key itself, not what follows it
    if problem.startswith("Cannot"):
        problem = "this key or table was already set above"
    key = dotted(spots.last) or None
    return ConfigError(f"not TOML: {problem[:1].lower()}{problem[1:]}", file=file, line=line, column=column, key=key)
