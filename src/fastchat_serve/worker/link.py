"""One connection between two processes of ours, which carries all their streams.

It is an asyncio protocol: whatever is sent within one turn of the event loop leaves as one frame, and all frames of one
read are handed over together. No task wakes for either. What the messages mean is for the ends: `host.py`
has the workers, `caller.py` calls them.

A link whose other end says nothing for several pings' time is silent: the other process is frozen, or the way to it is
cut. That is told, and so is its end; the owner decides what either means.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

from msgspec import Raw

from fastchat_serve.protocol.frames import FrameReader, LinkBroken, frames
from fastchat_serve.protocol.link import Pace, Ping, WrittenDeltas

__all__ = ["PING_S", "SILENCE", "Link", "LinkEnd"]

logger = logging.getLogger(__name__)

PING_S: Final = 0.4
"""How often the other end hears of us, and how often silence is looked for, unless the caller wants another pace."""

SILENCE: Final = 3.75
"""Pings' time of silence, after which the other end counts as frozen: within two seconds in all."""


FRAME_S: Final = 2.0
"""How long a frame that has begun may take, besides what its length explains."""

_LEAST_BYTES_PER_S: Final = 10_000
"""Of a way that is still one."""

UNREAD_S: Final = 10.0
"""How long who speaks may read nothing of what is sent to it. Whoever is silent is its owner's business."""

S = TypeVar("S")
R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)


class LinkEnd(Protocol[R_contra]):
    """Who uses a link. All are plain calls on the event loop's thread."""

    def opened(self) -> None:
        """The link can be used."""

    def receive(self, messages: Sequence[R_contra]) -> None:
        """What one read brought. May raise `LinkBroken`: then the link is closed."""

    def silent(self) -> None:
        """The other end has gone silent."""

    def heard(self) -> None:
        """It is not silent any more."""

    def closed(self, reason: str) -> None:
        """The link is gone; called once."""


class Link(asyncio.Protocol, Generic[S, R]):
    """See the module. `S` is what this end sends, `R` what the other may: `FromCaller` and `FromHost`, or the reverse.

    Args:
        received: ``list[R]``.
        end: Who uses it here.
    """

    def __init__(self, received: type[list[R]], end: LinkEnd[R]) -> None:
        self._end = end
        self._reader = FrameReader(received)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._outbox: list[S | Raw | WrittenDeltas | Ping | Pace] = []
        self._deltas: list[Raw] | None = None
        """Of the last message in the outbox, if more can join it."""
        self._last_words: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._ping_s = PING_S
        self._heard_at = self._spoke_at = self._loop.time()
        self._is_silent = False
        self._frames, self._frame_since = 0, self._heard_at
        """How many were complete when it was looked last, and since when the next one is awaited."""
        self._sent_bytes = self._taken_bytes = 0
        self._taken_since = self._heard_at
        """Since when the other end has taken no more than that of it."""
        self.reason = ""
        """Why it ended, or is ending."""
        self._gone = asyncio.Event()

    @property
    def open(self) -> bool:
        return self._transport is not None and not self.reason

    @property
    def ping_s(self) -> float:
        """How often both ends ping now."""
        return self._ping_s

    @property
    def local_host(self) -> str:
        """The IP address that this end has on the way to the other; empty if that is no network."""
        return _host_of(self._transport, "sockname")

    @property
    def peer_host(self) -> str:
        """The other end's."""
        return _host_of(self._transport, "peername")

    def send(self, message: S | Raw) -> None:
        """Have `message`, written already or not, leave within this turn of the loop. To a closed link nothing is sent.

        What may be too long, or was made by an engine, is to be `written` or `readable`: nothing else must break here.
        """
        self._post(message)
        self._deltas = None

    def send_delta(self, delta: Raw) -> None:
        """The same for a `Delta`, which shares a message with others. For hosts."""
        if self._deltas is None:
            self._deltas = []
            self._post(WrittenDeltas(self._deltas))
        self._deltas.append(delta)

    def before_leaving(self, speak: Callable[[], None]) -> None:
        """Have `speak` called when what was sent in this turn is about to leave: what it sends leaves with it.

        For what is true only once everything else of the turn is done. Something must have been sent already.
        """
        if self.open:
            self._last_words.append(speak)

    async def wait_closed(self) -> None:
        """Return when the link is gone."""
        await self._gone.wait()

    def pace(self, ping_s: float) -> None:
        """Ping, and be pinged, at this interval from now on. For callers."""
        if ping_s != self._ping_s and self.open:
            self._post(Pace(ping_s))
            self._deltas = None
            self._set_pace(ping_s)

    def close(self, reason: str) -> None:
        """Send what is still to be sent, and end. `reason` is what this end is told."""
        if self.open:
            self._flush()
        if self.open:  # for that may have ended it
            assert self._transport is not None
            self.reason = reason
            self._transport.close()

    def abort(self, reason: str) -> None:
        """End at once: when this returns, the end here has heard of it."""
        if self._transport is not None:
            self._transport.abort()
            self._lose(reason)

    # ------------------------------------------------------------------------------------ asyncio's

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._set_pace(self._ping_s)
        self._spoke_at = self._frame_since = self._heard_at
        try:
            self._end.opened()
        except Exception:  # the event loop would close the transport behind our back
            self._fail("it could not be begun")

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        if self._is_silent:
            self._is_silent = False
            self._end.heard()
        try:
            messages = [message for message in self._reader.feed(data) if not self._is_ours(message)]
            if messages and not self.reason:
                self._end.receive(messages)
        except LinkBroken as error:
            self._break(error)
        except Exception:  # likewise
            self._fail("a message could not be handled")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._lose(f"the connection broke ({exc})" if exc else "the other end closed it")

    # -------------------------------------------------------------------------------------------------

    def _is_ours(self, message: R | Ping | Pace) -> bool:
        if type(message) is Pace:
            self._set_pace(message.ping_s)
            self._post(Ping())
            self._deltas = None
            return True
        return type(message) is Ping

    def _set_pace(self, ping_s: float) -> None:
        """Silence counts from now: the other end may not know of the new pace yet."""
        if self._timer is not None:
            self._timer.cancel()
        self._ping_s, self._heard_at = ping_s, self._loop.time()
        self._timer = self._loop.call_later(ping_s, self._tick, self._heard_at + ping_s)

    def _lose(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        self._outbox.clear()
        self._last_words.clear()
        self.reason = self.reason or reason
        self._gone.set()
        self._end.closed(self.reason)

    def _break(self, error: LinkBroken) -> None:
        logger.error("A link between two processes is given up: %s", error)
        self.abort(str(error))

    def _fail(self, reason: str) -> None:
        """For what is being handled and ought never to have been raised."""
        logger.exception("A link between two processes is given up: this is a fault of ours.")
        self.abort(reason)

    def _post(self, message: S | Raw | WrittenDeltas | Ping | Pace) -> None:
        if not self.open:
            return
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(message)

    def _flush(self) -> None:
        if not self._outbox or not self.open:
            return
        assert self._transport is not None
        self._spoke_at = self._loop.time()
        try:
            last_words, self._last_words = self._last_words, []
            for speak in last_words:
                speak()
            if not self.open:  # they ended it
                return
            messages, self._outbox, self._deltas = self._outbox, [], None
            for frame in frames(messages):
                self._sent_bytes += len(frame)
                self._transport.write(frame)
        except LinkBroken as error:
            self._break(error)
        except Exception:  # else what is sent from now on would wait for ever
            self._fail("a message could not be made")

    def _tick(self, due: float) -> None:
        now, ping_s = self._loop.time(), self._ping_s
        # If this loop was held up, what came meanwhile has not been read yet: look at the next tick.
        in_time = now - due < ping_s
        silent = in_time and now - self._heard_at > SILENCE * ping_s
        if silent and self.reason and self._transport is not None:
            self._transport.abort()  # nobody reads the last words
            return
        is_heard = in_time and not silent
        if self._is_stuck(now, is_heard=is_heard):
            self._break(LinkBroken("a frame does not become complete"))
            return
        if self._is_unread(now, is_heard=is_heard):
            self._break(LinkBroken("the other end does not read"))
            return
        if now - self._spoke_at >= ping_s:
            self._post(Ping())
            self._deltas = None
        if silent and not self._is_silent:
            self._is_silent = True
            self._end.silent()
        self._timer = self._loop.call_later(ping_s, self._tick, now + ping_s)

    def _is_stuck(self, now: float, *, is_heard: bool) -> bool:
        """Something of a frame was lost: what comes next is taken for the rest of it, and that may be long."""
        reader = self._reader
        if not is_heard or not reader.incomplete_bytes or reader.frames != self._frames:
            self._frames, self._frame_since = reader.frames, now
        return now - self._frame_since > FRAME_S + reader.incomplete_bytes / _LEAST_BYTES_PER_S

    def _is_unread(self, now: float, *, is_heard: bool) -> bool:
        """The other end speaks and does not listen: what is for it would pile up here without end."""
        assert self._transport is not None
        waiting = self._transport.get_write_buffer_size()
        taken = self._sent_bytes - waiting
        if not is_heard or not waiting or taken != self._taken_bytes:
            self._taken_bytes, self._taken_since = taken, now
        return now - self._taken_since > UNREAD_S


def _host_of(transport: asyncio.Transport | None, end: str) -> str:
    address = None if transport is None else transport.get_extra_info(end)
    return str(address[0]) if isinstance(address, tuple) else ""
