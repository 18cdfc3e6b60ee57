"""One answer under way: the upstream's reply on one side, the caller's sink on the other."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from fastchat_backend_openai.answers import UpstreamAnswer
from fastchat_backend_openai.connection import Head
from fastchat_backend_openai.events import Event
from fastchat_backend_openai.failures import MAX_ERROR_BYTES, Failures
from fastchat_backend_openai.pool import Call
from fastchat_backend_openai.sse import EventReader
from fastchat_serve import EngineError, ServeError, Sink, Unavailable

__all__ = ["Stream"]

logger = logging.getLogger(__name__)

_decode = msgspec.json.Decoder(Event).decode


class Stream:
    """The receiver of a reply, and the handle of an answer.

    Args:
        over: Called once, at the end, before the sink hears of it; with the upstream's failure, if it had one.
    """

    def __init__(
        self, sink: Sink, answer: UpstreamAnswer, failures: Failures, over: Callable[[Stream, ServeError | None], None]
    ) -> None:
        self.call: Call | None = None
        self.heard = False
        """The upstream has replied."""
        self._sink, self._answer, self._failures, self._over = sink, answer, failures, over
        self._events = EventReader()
        self._refusal: Head | None = None  # the reply is no stream
        self._refused_with = b""
        self._ended = False

    def abort(self) -> None:
        if not self._ended:
            self._hang_up()
            self._end(None)

    def fail(self, error: ServeError) -> None:
        """End the answer with `error`."""
        if not self._ended:
            self._hang_up()
            self._end(error)

    # ------------------------------------------------------------------------------ the upstream's side

    def on_head(self, head: Head) -> None:
        self.heard = True
        if head.status != 200 or not head.get(b"content-type").lower().startswith("text/event-stream"):
            self._refusal = head
        elif head.get(b"content-encoding") not in ("", "identity"):
            self.fail(EngineError("The upstream compresses its reply, which was not asked for."))

    def on_data(self, data: bytes) -> None:
        if self._ended:
            return
        if self._refusal is not None:
            self._refused_with += data[: MAX_ERROR_BYTES - len(self._refused_with)]
            if len(self._refused_with) == MAX_ERROR_BYTES:
                self._refused(self._refusal)
            return
        try:
            if not self._take(data) and (chunk := self._answer.news()) is not None:
                self._sink.push(chunk)
        except ServeError as error:
            self.fail(error)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            logger.error("An event of the upstream's stream cannot be read: %s", error)  # noqa: TRY400 - not ours
            self.fail(EngineError("The upstream sent what is not of OpenAI's API."))

    def on_end(self) -> None:
        if self._ended:
            return
        if self._refusal is not None:
            self._refused(self._refusal)
        else:
            self._finish()

    def on_lost(self, error: ServeError) -> None:
        if self._ended:
            return
        if self._refusal is not None:
            self._refused(self._refusal)
        elif self._answer.complete:
            self._finish()
        else:
            cut_off = self._answer.begun and isinstance(error, Unavailable)
            self._end(EngineError(str(error), code="upstream_cut_off") if cut_off else error)

    # ------------------------------------------------------------------------------------------------

    def _take(self, data: bytes) -> bool:
        """Whether that was the end."""
        for event_data in self._events.feed(data):
            if event_data == b"[DONE]":
                self._finish()
                return True
            event = _decode(event_data)
            if event.error is not None:
                raise self._failures.of_event(event.error, begun=self._answer.begun)
            self._answer.take(event)
        return False

    def _finish(self) -> None:
        try:
            last = self._answer.last()
        except ServeError as error:
            self.fail(error)
            return
        self._sink.push(last)
        if self._ended:  # the sink aborted us
            return
        if self.call is not None:
            self.call.leave()
        self._end(None)

    def _refused(self, head: Head) -> None:
        if head.status != 200:
            error = self._failures.of_reply(head.status, self._refused_with, head.get(b"retry-after"))
        elif self._refused_with.lstrip().startswith(b'{"error"'):
            error = self._failures.of_reply(500, self._refused_with)
        else:
            logger.error("The upstream answered with %r instead of a stream.", head.get(b"content-type")[:100])
            error = EngineError("The upstream answered with something else than a stream.")
        self.fail(error)

    def _hang_up(self) -> None:
        if self.call is not None:
            self.call.abort()

    def _end(self, error: ServeError | None) -> None:
        self._ended = True
        self.call = None  # it holds us
        self._over(self, error)
        self._sink.end(error)
