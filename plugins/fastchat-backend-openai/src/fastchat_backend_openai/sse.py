"""Server-sent events out of bytes (https://html.spec.whatwg.org/multipage/server-sent-events.html).

Bytes stay bytes: the data of an event goes to a JSON decoder, which knows UTF-8.
"""

from __future__ import annotations

from fastchat_serve import EngineError

__all__ = ["MAX_EVENT_BYTES", "EventReader"]

MAX_EVENT_BYTES = 8 * 1024 * 1024


class EventReader:
    """Bytes in, the data of whole events out; the same however the bytes were cut."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # pieces of a line, so that a long one costs no more than its length
        self._data: list[bytes] = []
        self._size = 0
        self._after_return = False

    def feed(self, data: bytes) -> list[bytes]:
        """The data of every event that `data` completes. What a stream breaks off in is no event.

        Raises:
            EngineError: An event is longer than `MAX_EVENT_BYTES`.
        """
        if not self._rest and not self._data and _is_one_event(data):
            return [data[6:-2]]
        if b"\r" in data or self._after_return:
            data = self._normal(data)
        events = []
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = b"".join([*self._rest, lines[0]])
            self._size -= sum(map(len, self._rest))
            self._rest = []
        if rest:
            self._rest.append(rest)
            self._size += len(rest)
        for line in lines:
            if line:
                name, _, value = line.partition(b":")  # a comment has an empty name
                if name == b"data":
                    self._data.append(value.removeprefix(b" "))
                    self._size += len(self._data[-1])
            elif self._data:
                events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._size -= sum(map(len, self._data))
                self._data = []
        if self._size > MAX_EVENT_BYTES:
            raise EngineError("An event of the upstream's stream is too long.")
        return events

    def _normal(self, data: bytes) -> bytes:
        """`data` with line feeds for all line ends."""
        if self._after_return and data.startswith(b"\n"):
            data = data[1:]
            self._after_return = False
        if data:
            self._after_return = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _is_one_event(data: bytes) -> bool:
    """Nearly all reads: one whole event, on one line."""
    return data[:6] == b"data: " and data[-2:] == b"\n\n" and data.find(b"\n") == len(data) - 2 and b"\r" not in data
