"""A reply as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

An event that has only text is spliced together: the bytes before, the escaped text, the bytes after,
made once per choice. Only events with more in them go through a Struct. Each chunk leaves as one
write, within the engine's step.
"""

from __future__ import annotations

import msgspec

from fastchat_serve.engine import Chunk, Sink
from fastchat_serve.errors import DeadlineExceeded, ServeError
from fastchat_serve.routes.answer import Reply
from fastchat_serve.routes.errors import error_body
from fastchat_serve.routes.exchange import MAX_BACKLOG_BYTES

__all__ = ["DONE", "EVENT_HEADERS", "EventReply", "event"]

DONE = b"data: [DONE]\n\n"
"""OpenAI's mark at the end of a stream that went well."""

EVENT_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events otherwise
)

_encode = msgspec.json.Encoder().encode


def event(value: msgspec.Struct) -> bytes:
    """One event with `value` as its data."""
    return b"data: " + _encode(value) + b"\n\n"


class EventReply(Reply):
    """See the module."""

    def sink(self, index: int) -> Sink:
        return _EventSink(self, index)

    def open(self) -> None:
        """The first events are about to be written."""
        self.observation.first_token()
        self.exchange.begin(200, EVENT_HEADERS)

    def write(self, body: bytes) -> None:
        """Send events, but not the last."""
        if self.exchange.outlet.write(body) > MAX_BACKLOG_BYTES:
            self.exchange.outlet.drop_backlog()
            self.fail(DeadlineExceeded("The client did not read its stream.", code="slow_reader"))

    def write_error(self, error: ServeError) -> None:
        self.exchange.outlet.write(b"data: " + error_body(error) + b"\n\n", last=True)


class _EventSink:
    """One choice."""

    __slots__ = ("_after", "_before", "_index", "_opened", "_reply", "_spliced")

    def __init__(self, reply: EventReply, index: int) -> None:
        self._reply, self._index = reply, index
        template = reply.dialect.template(index)
        self._spliced = template is not None
        self._before, self._after = template or (b"", b"")
        self._opened = False

    def push(self, chunk: Chunk) -> None:
        reply = self._reply
        if reply.done:
            return
        if chunk.finish_reason is not None:
            self._push_last(chunk)
        elif self._spliced and self._opened and chunk.prompt is None and not chunk.reasoning:  # nearly all
            if text := chunk.text:
                reply.write(self._before + _encode(text)[1:-1] + self._after)
        elif body := reply.dialect.events(self._index, chunk):
            reply.write(self._opening() + body)

    def _push_last(self, chunk: Chunk) -> None:
        reply = self._reply
        body = self._opening() + reply.dialect.events(self._index, chunk)
        total = reply.finish_choice(self._index, chunk.usage)
        if total is None:
            reply.write(body)
        else:
            body += reply.dialect.closing(total)
            reply.complete(total)
            reply.exchange.outlet.write(body, last=True)

    def _opening(self) -> bytes:
        """What comes before the first event of this choice; with the first of all, the head leaves."""
        if self._opened:
            return b""
        self._opened = True
        if not self._reply.exchange.started:
            self._reply.open()
        return self._reply.dialect.opening(self._index)

    def end(self, error: Exception | None) -> None:
        if error is not None:
            self._reply.fail(error)
