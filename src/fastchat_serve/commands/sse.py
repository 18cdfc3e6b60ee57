"""Reading server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

`routes/sse.py` writes them; here is what a client needs to read them.
"""

from __future__ import annotations

import codecs
import re

__all__ = ["EventReader"]

MAX_EVENT_CHARS = 16 * 1024 * 1024

_LINE_END = re.compile(r"\r\n|\r|\n")


class EventReader:
    """Bytes in, the data of whole events out; the same however the bytes were cut.

    Only line feeds and carriage returns end a line. (`str.splitlines` knows more, and would cut JSON that
    holds U+2028.) An event that the stream breaks off in is dropped, as the standard says.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._rest = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[str]:
        """The data of every event that `data` completes.

        Raises:
            ValueError: An event grows beyond all measure.
        """
        events = []
        *lines, self._rest = _split(self._rest + self._decoder.decode(data))
        for line in lines:
            if line:
                self._field(line)
            elif self._data:
                events.append("\n".join(self._data))
                self._data = []
        if len(self._rest) + sum(map(len, self._data)) > MAX_EVENT_CHARS:
            raise ValueError(f"An event is longer than {MAX_EVENT_CHARS} characters.")
        return events

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")  # a comment has an empty name
        if name == "data":
            self._data.append(value.removeprefix(" "))


def _split(text: str) -> list[str]:
    """The lines of `text`. A carriage return at its end stays in the last one: a line feed may follow."""
    if text.endswith("\r"):
        *lines, last = _LINE_END.split(text[:-1])
        return [*lines, last + "\r"]
    return _LINE_END.split(text)
