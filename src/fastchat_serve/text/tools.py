"""Tool calls in the text of an answer.

A parser takes the text as it arrives and gives back events: text for the reader, and calls once they
are complete. However the text is cut, the merged message is the same, and nothing is lost: what looks
like a call but is none comes back as the text it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import msgspec

from fastchat_serve.text.stop import StopStrings

__all__ = ["TOOL_PARSERS", "HermesToolParser", "TextDelta", "ToolCallDelta", "ToolEvent", "ToolParser"]


class TextDelta(msgspec.Struct, frozen=True):
    """More text for the reader; never empty."""

    text: str


class ToolCallDelta(msgspec.Struct, frozen=True):
    """One complete call. `index` counts the calls of the answer from 0; `arguments` is a JSON object's text."""

    index: int
    name: str
    arguments: str


ToolEvent = TextDelta | ToolCallDelta


class ToolParser(Protocol):
    """Takes the text of one answer apart. One parser per answer."""

    def feed(self, text: str) -> list[ToolEvent]:
        """What has become certain with `text`."""
        ...

    def finish(self) -> list[ToolEvent]:
        """What was held back; the answer has ended."""
        ...


class HermesToolParser:
    """Calls as Hermes and Qwen models write them.

    ::

        <tool_call>
        {"name": "weather", "arguments": {"city": "Oslo"}}
        </tool_call>

    A call reaches to the first closing tag, or to the end of the answer if its JSON is complete there.
    White space after a call is layout, not text; so is that before it, unless text follows the call as well.
    """

    OPEN, CLOSE = "<tool_call>", "</tool_call>"

    def __init__(self) -> None:
        self._inside = False
        self._tag = StopStrings([self.OPEN])
        self._body: list[str] = []
        self._space: list[str] = []
        """White space that is text only if more text follows."""
        self._call_count = 0
        self._after_text = False
        self._after_call = False

    def feed(self, text: str) -> list[ToolEvent]:
        """Text outside calls, and calls whose closing tag has come."""
        events: list[ToolEvent] = []
        while True:
            piece = self._tag.feed(text)
            if self._inside:
                self._body.append(piece)
            else:
                events += self._text(piece)
            if self._tag.matched is None:
                return events
            text = self._tag.remainder
            if self._inside:
                events += self._close(self.CLOSE)
            self._inside = not self._inside
            self._tag = StopStrings([self.CLOSE if self._inside else self.OPEN])

    def finish(self) -> list[ToolEvent]:
        """A last call without its closing tag, or the text held back."""
        held = self._tag.flush()
        events = self._close(held) if self._inside else self._text(held)
        self._inside = False
        if self._space and not self._after_call:
            events.append(TextDelta("".join(self._space)))
        self._space = []
        return events

    def _close(self, tag: str) -> list[ToolEvent]:
        """The call that ends here with `tag`, or the text that it was if it is none."""
        body = "".join(self._body)
        self._body = []
        call = _parsed_call(body)
        if call is None:
            return self._text(self.OPEN + body + tag)
        event = ToolCallDelta(self._call_count, call.name, bytes(call.arguments).decode())
        self._call_count += 1
        self._after_call = True
        if not self._after_text:
            self._space = []
        return [event]

    def _text(self, text: str) -> list[ToolEvent]:
        """`text` without the white space that follows a call, or that one may turn out to follow."""
        if self._after_call:
            text = text.lstrip()
        if not text:
            return []
        visible = text.rstrip()
        if not visible:
            self._space.append(text)
            return []
        before = "".join(self._space)
        self._space = [text[len(visible) :]]
        self._after_text, self._after_call = True, False
        return [TextDelta(before + visible)]


TOOL_PARSERS: Mapping[str, type[ToolParser]] = MappingProxyType({"hermes": HermesToolParser})
"""Parsers by the name that `EngineInfo.tool_parser` gives."""


class _Call(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


def _parsed_call(body: str) -> _Call | None:
    try:
        call = msgspec.json.decode(body, type=_Call)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return call if call.name and bytes(call.arguments).startswith(b"{") else None
