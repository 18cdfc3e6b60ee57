"""What makes much out of little in a chat template, refused before it does.

Jinja's sandbox looks at what is called, not at how much that makes: ``'x'.center(10**10)`` is one call, and
``[['x'] * 1000] * 1000`` is small until it is written out. Sizes are characters, and items of containers.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from fastchat_serve.text.template_meter import LimitReached

__all__ = ["NEEDLESS_FILTERS", "NEEDLESS_METHODS", "Growth"]

NEEDLESS_FILTERS = frozenset(
    [
        *("batch", "center", "filesizeformat", "forceescape", "pprint", "random"),
        *("slice", "striptags", "urlencode", "urlize", "wordwrap", "xmlattr"),
    ]
)
NEEDLESS_METHODS = frozenset(["center", "encode", "expandtabs", "ljust", "maketrans", "rjust", "translate", "zfill"])
"""Of strings. No chat template has a use for either, and each can be made to write much, or to take long."""

_PERCENT_WIDTHS = re.compile(r"%(?:\([^)]*+\))?+[-+ #0]*+([0-9*]*+)\.?+([0-9*]*+)")
_WIDTHS = re.compile(r"[0-9]++|\{")
_MOST_WIDTH = 1000
_END = object()

Filter = Callable[..., Any]


class Growth:
    """Checks, each of which raises `LimitReached` if what is about to be made is larger than `most`.

    Those of filters have the filters' own parameters.
    """

    def __init__(self, most: int) -> None:
        self._most = most

    def check(self, size: int) -> None:
        """A size that is known."""
        if size > self._most:
            raise LimitReached(f"a value larger than {self._most}")

    def written(self, *values: Any) -> int:
        """The text of `values`: what is in them counts as often as it is there. Returns its size, or a little less."""
        size, pending = 0, [iter(values)]
        while pending:
            value = next(pending[-1], _END)
            if value is _END:
                pending.pop()
                continue
            size += len(value) if isinstance(value, str) else 1
            self.check(size)
            if isinstance(value, Mapping):
                pending.append(chain(value, value.values()))
            elif isinstance(value, (list, tuple)):
                pending.append(iter(value))
        return size

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        """`values`, until they are too much together."""
        size = 0
        for value in values:
            size += len(value) if isinstance(value, str) else 1
            self.check(size)
            yield value

    def replaced(self, s: Any, old: Any, new: Any, count: Any = None) -> None:
        self.check(str(s).count(str(old)) * len(str(new)))

    def joined(self, value: Any, d: Any = "", attribute: Any = None) -> None:
        if isinstance(value, (list, tuple)):
            self.check(len(value) * len(str(d)))
            self.written(value)

    def indented(self, s: Any, width: Any = 4, first: Any = False, blank: Any = False) -> None:
        _check_width(width if isinstance(width, int) else len(width))
        self.check(str(s).count("\n") * (width if isinstance(width, int) else len(width)))

    def rounded(self, value: Any, precision: int = 0, method: Any = "common") -> None:
        _check_width(precision)

    def summed(self, iterable: Any, attribute: Any = None, start: Any = 0) -> None:
        if not isinstance(start, (int, float)):
            raise LimitReached("a sum of what are no numbers")

    def as_json(self, value: Any, ensure_ascii: Any = False, indent: Any = None, *_: Any, **__: Any) -> None:
        width = indent if isinstance(indent, int) else len(indent or "")
        _check_width(width)
        self.check(self.written(value) * (1 + width))

    def percent(self, text: Any, *args: Any, **kwargs: Any) -> None:
        """``text % args``."""
        if isinstance(text, str):
            widths = [width for found in _PERCENT_WIDTHS.finditer(text) for width in found.groups() if width]
            self._padded(text, widths, args, kwargs)

    def formatted(self, text: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """``text.format(*args, **kwargs)``."""
        specs = [spec for _, _, spec, _ in string.Formatter().parse(text) if spec]
        self._padded(text, [width for spec in specs for width in _WIDTHS.findall(spec)], args, kwargs)

    def _padded(self, text: str, widths: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for width in widths:
            _check_width(int(width) if width.isdigit() and len(width) < 10 else _MOST_WIDTH + 1)
        self.check(len(text) + sum(map(int, widths)))
        self.written(args, kwargs)

    def guard(self, filters: Mapping[str, Filter]) -> dict[str, Filter]:
        """`filters`, without those that nobody needs, and each with its check before it."""
        checks: dict[str, Filter] = {
            "format": self.percent,
            "indent": self.indented,
            "join": self.joined,
            "replace": self.replaced,
            "round": self.rounded,
            "string": self.written,
            "sum": self.summed,
            "tojson": self.as_json,
        }
        kept = {name: run for name, run in filters.items() if name not in NEEDLESS_FILTERS}
        guarded = {name: _checked(kept[name], check) for name, check in checks.items()}
        return kept | guarded | {"map": self._counting(kept["map"])}

    def _counting(self, run: Filter) -> Filter:
        @functools.wraps(run)
        def counting(*args: Any, **kwargs: Any) -> Any:
            return self.counted(run(*args, **kwargs))

        return counting


def _checked(run: Filter, check: Filter) -> Filter:
    """`run` after `check`, which does not see the context that Jinja hands to some filters first."""
    hidden = 1 if hasattr(run, "jinja_pass_arg") else 0

    @functools.wraps(run)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check(*args[hidden:], **kwargs)
        return run(*args, **kwargs)

    return checked


def _check_width(width: int) -> None:
    if width > _MOST_WIDTH:
        raise LimitReached(f"a width of more than {_MOST_WIDTH}")
