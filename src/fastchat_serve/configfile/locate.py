"""Line and column of every key and value in a TOML text.

`tomllib` knows what a document says but not where. This scanner knows only where: it follows the
grammar just closely enough to walk over keys and values, and leaves judging them to `tomllib`. In
a text that is not TOML it stops at the first thing it cannot walk over.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from contextlib import suppress
from itertools import accumulate

from msgspec import Struct

from fastchat_serve.configfile.places import KeyPath

__all__ = ["Spot", "Spots", "locate", "split_key"]

Spot = tuple[int, int]
"""Line and column, one-based, in characters."""

_SEGMENT = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*'""")
_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SCALAR = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|[^,\[\]{}#\n"']+''',
    re.DOTALL,
)


class Spots(Struct, frozen=True):
    """What `locate` found."""

    keys: dict[KeyPath, Spot]
    """Where a key begins; a list item has no key and begins where its value does."""
    values: dict[KeyPath, Spot]
    """Where a value begins; for a table with a header, the header's bracket."""
    last: KeyPath
    """The key that the scan reached last: in a broken text, the one to blame."""


def locate(text: str) -> Spots:
    """Find the places in `text`, whose line ends are ``\\n``."""
    scanner = _Scanner(text)
    with suppress(_Lost, RecursionError):  # then what was found so far is what there is to say
        scanner.document()
    line_starts = list(accumulate((len(line) + 1 for line in text.split("\n")), initial=0))

    def spot(offset: int) -> Spot:
        line = bisect_right(line_starts, offset)
        return line, offset - line_starts[line - 1] + 1

    return Spots(
        {path: spot(offset) for path, offset in scanner.keys.items()},
        {path: spot(offset) for path, offset in scanner.values.items()},
        scanner.last,
    )


def split_key(text: str) -> tuple[tuple[str, ...], str] | None:
    """Split ``table."dotted.key" = value`` into the key's steps and the text after "="; None if it is not that."""
    scanner = _Scanner(text)
    try:
        steps = scanner.key()
        scanner.expect("=")
    except _Lost:
        return None
    return tuple(name for name, _ in steps), text[scanner.position :]


class _Lost(Exception):
    """This is no TOML, or none that `tomllib` would accept."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.position = 0
        self.keys: dict[KeyPath, int] = {}
        self.values: dict[KeyPath, int] = {}
        self.last: KeyPath = ()
        self._text = text
        self._table_counts: dict[KeyPath, int] = {}  # of arrays of tables: how many headers came so far

    def document(self) -> None:
        table: KeyPath = ()
        while self._skip(_BLANK) < len(self._text):
            if self._text.startswith("[", self.position):
                table = self._header()
            else:
                self._pair(table)

    def key(self) -> list[tuple[str, int]]:
        """The steps of a dotted key, and where each begins."""
        steps = []
        while True:
            start = self._skip(_SPACE)
            steps.append((_plain(self._take(_SEGMENT)), start))
            self._skip(_SPACE)
            if not self._text.startswith(".", self.position):
                return steps
            self.position += 1

    def expect(self, mark: str) -> None:
        if not self._text.startswith(mark, self.position):
            raise _Lost
        self.position += len(mark)

    def _header(self) -> KeyPath:
        """``[a.b]`` or ``[[a.b]]``: the table that the following pairs belong to."""
        start = self.position
        is_item = self._text.startswith("[[", start)
        self.position += 2 if is_item else 1
        *around, (name, name_start) = self.key()
        path: KeyPath = ()
        for step, step_start in around:
            path = (*path, step)
            self.keys.setdefault(path, step_start)
            self.values.setdefault(path, start)
            if path in self._table_counts:
                path = (*path, self._table_counts[path] - 1)
        path = self.last = (*path, name)
        if path not in self._table_counts:
            self.keys[path], self.values[path] = name_start, start
        self.expect("]]" if is_item else "]")
        if not is_item:
            return path
        count = self._table_counts[path] = self._table_counts.get(path, 0) + 1
        path = (*path, count - 1)
        self.keys[path] = self.values[path] = start
        return path

    def _pair(self, table: KeyPath) -> None:
        path = table
        for name, start in self.key():
            path = (*path, name)
            self.keys.setdefault(path, start)
            self.values.setdefault(path, start)
        self.keys[path] = start  # of the second in a pair of duplicates: it is the one in error
        self.last = path
        self.expect("=")
        self.values[path] = self._skip(_SPACE)
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        opening = self._text[self.position : self.position + 1]
        if opening == "[":
            self._items("]", path)
        elif opening == "{":
            self._items("}", path)
        else:
            self._take(_SCALAR)

    def _items(self, closing: str, path: KeyPath) -> None:
        """The inside of an array or an inline table."""
        self.position += 1
        index = 0
        while not self._text.startswith(closing, self._skip(_BLANK)):
            if closing == "]":
                item = (*path, index)
                self.keys[item] = self.values[item] = self.position
                self._value(item)
            else:
                self._pair(path)
            index += 1
            self._skip(_BLANK)
            if not self._text.startswith((",", closing), self.position):
                raise _Lost
            self.position += self._text.startswith(",", self.position)
        self.position += 1

    def _skip(self, pattern: re.Pattern[str]) -> int:
        found = pattern.match(self._text, self.position)
        self.position = found.end() if found else self.position
        return self.position

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self.position)
        if found is None:
            raise _Lost
        self.position = found.end()
        return found[0]


def _plain(segment: str) -> str:
    """One step of a key without its quotes and escapes."""
    if segment[0] == '"':
        try:
            return str(tomllib.loads(f"key = {segment}")["key"])
        except tomllib.TOMLDecodeError:
            raise _Lost from None
    return segment[1:-1] if segment[0] == "'" else segment
