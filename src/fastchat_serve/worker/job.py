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
from fastchat_serve.errors import EngineError, EngineProtocolError, OutOfMemory, Overloaded, ServeError
from fastchat_serve.worker.contract import flaw
from fastchat_serve.worker.deadlines import Deadlines
from fastchat_serve.worker.slots import Slots, Ticket

__all__ = ["Job", "as_serve_error"]

logger = logging.getLogger(__name__)

Start = Callable[[GenerateRequest, Sink], Handle]


class Job:
    """Made by `LocalWorker.start`; `accept` asks for a slot.

    Args:
        start: The engine's push form.
        let_go: Called once, when nothing is held for the request any more.
        breach: Called whenever the engine breaks the contract.
        clock: Monotonic time in seconds.
    """

    __slots__ = (
        "_aborted",
        "_breach",
        "_clock",
        "_deadlines",
        "_finished",
        "_forgotten",
        "_handle",
        "_let_go",
        "_over",
        "_owing_since",
        "_request",
        "_sink",
        "_slots",
        "_start",
        "_ticket",
        "_token_count",
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
        breach: Callable[[], None],
    ) -> None:
        self._request, self._sink = request, sink
        self._start, self._slots, self._clock = start, slots, clock
        self._let_go, self._breach = let_go, breach
        self._deadlines = Deadlines(timeouts, request.timeout_s, clock())
        self._ticket = Ticket(self._begin, self.give_up, request.priority, request.tenant)
        self._handle: Handle | None = None
        self._owing_since: float | None = None  # from when the engine has nothing left to do but to let go
        self._token_count = len(request.resume_token_ids)  # of the whole answer so far
        self._finished = False  # the last chunk was passed on
        self._aborted = False  # the engine was told to stop, or never began
        self._told = False  # the caller's sink has heard of its end
        self._over = False  # the engine holds nothing any more
        self._forgotten = False  # or nobody cares whether it does

    def accept(self) -> None:
        """Take a slot or a place in the queue. Raises `Overloaded`."""
        try:
            self._slots.acquire(self._ticket)
        except Overloaded:
            del self._ticket  # it holds us
            raise

    # ------------------------------------------------------------------------------ the caller's side

    def abort(self) -> None:
        if self._aborted or self._over:
            return
        self._aborted = True
        self._owing_since = self._clock()
        if self._deadlines.began_at is None:
            self.end(None)
        elif self._handle is not None:
            self._abort_engine(self._handle)

    # ------------------------------------------------------------------------------ the worker's side

    @property
    def waiting(self) -> bool:
        """It has no slot yet."""
        return self._deadlines.began_at is None

    def give_up(self, error: ServeError) -> None:
        """Tell the caller now that it is over, and have the engine stop."""
        self._tell(error)
        self.abort()

    def check(self, now: float, abort_grace_s: float) -> bool:
        """Enforce the time limits. False if the engine ought to have let go by now, and has not."""
        if self._owing_since is not None:
            return now - self._owing_since <= abort_grace_s
        if (expired := self._deadlines.passed(now)) is not None:
            self.give_up(expired)
        return True

    def forget(self) -> None:
        """Free the slot although the engine never let go."""
        self._forgotten = self._aborted = True
        self._release()

    # ------------------------------------------------------------------------------ the engine's side

    def push(self, chunk: Chunk) -> None:
        if self._told or self._aborted:
            return
        if self._finished:
            self.give_up(self._broken("went on after the last chunk"))
            return
        self._deadlines.token_at = self._clock()
        try:
            plain = type(chunk) is Chunk and type(chunk.text) is str  # nearly all; a call for each would be felt
            rich = not plain or chunk.logprobs is not None or chunk.finish_reason is not None
            if rich and (what := flaw(chunk)):
                self.give_up(self._broken(f"sent {what}"))
                return
            self._token_count += len(chunk.token_ids)
            self._sink.push(chunk)
        except Exception as error:  # a chunk that cannot be used must not end the step of its batch-mates
            logger.exception("Request %s: a chunk of the engine cannot be used.", self._request.id)
            self.give_up(self._broken(f"sent a chunk that cannot be used: {type(error).__name__}"))
            return
        if chunk.finish_reason is not None:
            self._finished, self._owing_since = True, self._deadlines.token_at
            self._check_usage(chunk)

    def end(self, error: Exception | None) -> None:
        if self._over:
            if not self._forgotten:
                self._broken("ended the answer twice")
        elif error is None and not (self._finished or self._aborted or self._told):
            self._tell(self._broken("ended the answer without a finish reason"))
        else:
            self._tell(None if error is None else as_serve_error(error, self._request.id))
        self._release()

    def _check_usage(self, last: Chunk) -> None:
        """A wrong count spoils a bill, not the answer."""
        if last.usage is None:
            self._broken("ended the answer without a usage")
        elif last.usage.completion_tokens != self._token_count and self._token_count:
            self._broken(f"sent {self._token_count} tokens and counted {last.usage.completion_tokens}")

    def _broken(self, what: str) -> EngineProtocolError:
        """Note that the engine broke the contract."""
        logger.error("Request %s: the engine %s.", self._request.id, what)
        self._breach()
        return EngineProtocolError(f"The engine {what}.")

    # ------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """A slot is ours."""
        now = self._clock()
        if (expired := self._deadlines.passed(now)) is not None:
            self.give_up(expired)
            return
        self._deadlines.began_at = now
        try:
            handle = self._start(self._request, self)
        except Exception as error:  # the boundary to foreign code; later, as `start` promises
            asyncio.get_running_loop().call_soon(self.end, error)
            return
        if self._over:
            return
        self._handle = handle
        if self._aborted:  # before there was a handle, by what the engine sent at once
            self._abort_engine(handle)

    def _abort_engine(self, handle: Handle) -> None:
        try:
            handle.abort()
        except Exception:  # the boundary to foreign code; `check` notices if the engine goes on
            logger.exception("Request %s: the engine's abort failed.", self._request.id)

    def _tell(self, error: ServeError | None) -> None:
        """End the caller's sink, once. A whole answer and an aborted one have no error."""
        if self._told:
            return
        self._told = True
        try:
            self._sink.end(None if self._finished or self._aborted else error)
        except Exception:  # one caller's failure must not reach other requests
            logger.exception("Request %s: its end could not be told.", self._request.id)

    def _release(self) -> None:
        if not self._over:
            self._over = True
            self._slots.release(self._ticket)
            self._let_go(self)
            del self._ticket, self._handle, self._sink  # they hold us


def as_serve_error(error: Exception, request_id: str) -> ServeError:
    """What a client may see of `error`; anything unexpected goes to the log instead."""
    if isinstance(error, ServeError):
        return error
    if _is_out_of_memory(error):
        return OutOfMemory("There was not enough memory for this request.", retry_after_s=1.0)
    logger.error("Request %s: the engine failed.", request_id, exc_info=error)
    return EngineError(f"The engine failed while it worked on this request: {type(error).__name__}.")


def _is_out_of_memory(error: Exception) -> bool:
    """Python's error, or one like torch's, which is of another family: it is known by its name."""
    return any(kind.__name__ in ("MemoryError", "OutOfMemoryError") for kind in type(error).__mro__)
