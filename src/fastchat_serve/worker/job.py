"""One answer in a local worker: a sink to its engine, a handle to its caller.

It holds a slot from when one is granted until the engine lets go, keeps the time limits, and proves
the contract: whatever an engine does, the caller's sink hears of exactly one end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from fastchat_serve.config import Timeouts
from fastchat_serve.engine import Chunk, GenerateRequest, Handle, Sink
from fastchat_serve.errors import DeadlineExceeded, EngineError, EngineProtocolError, OutOfMemory, ServeError
from fastchat_serve.worker.slots import Slots, Ticket

__all__ = ["Job", "as_serve_error"]

logger = logging.getLogger(__name__)

Start = Callable[[GenerateRequest, Sink], Handle]


class Job:
    """Made by `LocalWorker.start`; `accept` asks for a slot.

    Args:
        start: The engine's push form.
        let_go: Called once, when nothing is held for the request any more.
        clock: Monotonic time in seconds.
    """

    __slots__ = (
        "_aborted_at",
        "_accepted_at",
        "_began_at",
        "_clock",
        "_finished",
        "_handle",
        "_last_at",
        "_let_go",
        "_over",
        "_request",
        "_sink",
        "_slots",
        "_start",
        "_ticket",
        "_timeouts",
        "_told",
    )

    def __init__(
        self,
        request: GenerateRequest,
        sink: Sink,
        *,
        start: Start,
        slots: Slots,
        timeouts: Timeouts,
        clock: Callable[[], float],
        let_go: Callable[[Job], None],
    ) -> None:
        self._request, self._sink = request, sink
        self._start, self._slots, self._timeouts, self._clock, self._let_go = start, slots, timeouts, clock, let_go
        self._accepted_at = clock()
        self._began_at: float | None = None
        self._last_at: float | None = None
        self._aborted_at: float | None = None
        self._handle: Handle | None = None
        self._ticket = Ticket(self._begin, request.priority)
        self._finished = False  # the last chunk was pushed
        self._told = False  # the caller's sink has heard of its end
        self._over = False  # the engine holds nothing any more

    def accept(self) -> None:
        """Take a slot or a place in the queue. Raises `Overloaded`."""
        self._slots.acquire(self._ticket)

    # ------------------------------------------------------------------------------ the caller's side

    def abort(self) -> None:
        if self._aborted_at is None and not self._over:
            self._abort_engine()

    def give_up(self, error: ServeError) -> None:
        """Tell the caller now that it is over, and have the engine stop."""
        if not self._told:
            self._told = True
            self._sink.end(error)
        self.abort()

    # ------------------------------------------------------------------------------ the worker's side

    def check(self, now: float, abort_grace_s: float) -> bool:
        """Enforce the time limits. False if the engine was told to stop and does not."""
        if self._aborted_at is not None:
            return now - self._aborted_at <= abort_grace_s
        if (error := self._expired(now)) is not None:
            self.give_up(error)
        return True

    def forget(self) -> None:
        """Free the slot although the engine never let go."""
        self._release()

    # ------------------------------------------------------------------------------ the engine's side

    def push(self, chunk: Chunk) -> None:
        if self._told or self._aborted_at is not None:
            return
        if self._finished:
            self.give_up(EngineProtocolError("The engine went on after the end."))
            return
        self._last_at = self._clock()
        self._finished = chunk.finish_reason is not None
        try:
            self._sink.push(chunk)
        except Exception as error:  # a chunk that cannot be used must not end the step of its batch-mates
            logger.exception("Request %s: a chunk of the engine cannot be used.", self._request.id)
            self.give_up(EngineProtocolError(f"The engine sent a chunk that cannot be used: {type(error).__name__}."))

    def end(self, error: Exception | None) -> None:
        if self._over:
            logger.error("Request %s: the engine ended it twice.", self._request.id)
            return
        try:
            if not self._told:
                self._told = True
                if error is None and not self._finished and self._aborted_at is None:
                    error = EngineProtocolError("The engine ended the answer without a finish reason.")
                self._sink.end(None if error is None else as_serve_error(error, self._request.id))
        finally:
            self._release()

    # ------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """A slot is ours."""
        now = self._clock()
        if (expired := self._expired(now)) is not None:
            self.give_up(expired)
            return
        self._began_at = now
        try:
            self._handle = self._start(self._request, self)
        except Exception as error:  # the boundary to foreign code; later, as `start` promises
            asyncio.get_running_loop().call_soon(self.end, error)

    def _expired(self, now: float) -> DeadlineExceeded | None:
        limits, waited_s = self._timeouts, now - self._accepted_at
        for limit_s in (self._request.timeout_s, limits.total_s):
            if limit_s is not None and waited_s > limit_s:
                return DeadlineExceeded(f"The answer was not done within {limit_s:g} s.", code="total_timeout")
        if self._began_at is None:
            if limits.queue_s is not None and waited_s > limits.queue_s:
                return DeadlineExceeded(f"No slot was free within {limits.queue_s:g} s.", code="queue_timeout")
        elif self._last_at is None:
            if limits.first_token_s is not None and now - self._began_at > limits.first_token_s:
                return DeadlineExceeded(f"No token came within {limits.first_token_s:g} s.", code="first_token_timeout")
        elif (
            limits.between_tokens_s is not None and not self._finished and now - self._last_at > limits.between_tokens_s
        ):
            return DeadlineExceeded(
                f"No further token came within {limits.between_tokens_s:g} s.", code="between_tokens_timeout"
            )
        return None

    def _abort_engine(self) -> None:
        self._aborted_at = self._clock()
        if self._began_at is None:
            self.end(None)
        elif self._handle is not None:
            try:
                self._handle.abort()
            except Exception:  # the boundary to foreign code; `check` notices if the engine goes on
                logger.exception("Request %s: the engine's abort failed.", self._request.id)

    def _release(self) -> None:
        if not self._over:
            self._over = True
            self._slots.release(self._ticket)
            self._let_go(self)


def as_serve_error(error: Exception, request_id: str) -> ServeError:
    """What a client may see of `error`; anything unexpected goes to the log instead."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory("There was not enough memory for this request.")
    logger.error("Request %s: the engine failed.", request_id, exc_info=error)
    return EngineError(f"The engine failed while it worked on this request: {type(error).__name__}.")
