"""One embedding in a local worker: what `job.py` is for answers, for a call that is waited for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
from msgspec.structs import replace

from fastchat_serve.config import Timeouts
from fastchat_serve.engine import Embeddings, EmbedRequest
from fastchat_serve.errors import DeadlineExceeded, Overloaded, ServeError
from fastchat_serve.worker.deadlines import Deadlines
from fastchat_serve.worker.job import as_serve_error
from fastchat_serve.worker.slots import Slots, Ticket

__all__ = ["EmbedJob"]


class EmbedJob:
    """Made by `LocalWorker.embed`. Its caller gives up by being cancelled.

    Args:
        embed: The engine's.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        request: EmbedRequest,
        *,
        embed: Callable[[EmbedRequest], Awaitable[Embeddings]],
        slots: Slots,
        timeouts: Timeouts,
        clock: Callable[[], float],
    ) -> None:
        self._request, self._embed, self._slots, self._clock = request, embed, slots, clock
        for_all = replace(timeouts, first_token_s=None, between_tokens_s=None)  # an embedding has no tokens
        self._deadlines = Deadlines(for_all, request.timeout_s, clock())
        self._limit_s = timeouts.embed_s
        self._granted = anyio.Event()
        self._ticket = Ticket(self._granted.set, self.give_up, tenant=request.tenant)
        self._scope = anyio.CancelScope()
        self._error: ServeError | None = None
        self._owing_since: float | None = None  # from when the engine has nothing left to do but to let go

    async def run(self) -> Embeddings:
        """Wait for a slot, and embed. Raises `ServeError`, `Overloaded` before anything else."""
        try:
            self._slots.acquire(self._ticket)
        except Overloaded:
            del self._ticket  # it holds us
            raise
        try:
            with self._scope:
                await self._granted.wait()
                now = self._clock()
                if (expired := self._deadlines.passed(now)) is not None:
                    raise expired
                self._deadlines.began_at = now
                return await self._embed(self._request)
            assert self._error is not None  # nothing but `give_up` cancels the scope
            raise self._error
        except Exception as error:  # the boundary to foreign code
            raise as_serve_error(error, self._request.id) from error
        finally:
            self._slots.release(self._ticket)
            del self._ticket  # it holds us

    @property
    def waiting(self) -> bool:
        """It has no slot yet."""
        return self._deadlines.began_at is None

    def give_up(self, error: ServeError) -> None:
        """Have the engine stop, and the caller told why."""
        if self._error is None:
            self._error, self._owing_since = error, self._clock()
            self._scope.cancel()

    def check(self, now: float, abort_grace_s: float) -> bool:
        """Enforce the time limits. False if the engine ought to have let go by now, and has not."""
        if self._owing_since is not None:
            return now - self._owing_since <= abort_grace_s
        if (expired := self._deadlines.passed(now) or self._passed(now)) is not None:
            self.give_up(expired)
        return True

    def _passed(self, now: float) -> DeadlineExceeded | None:
        began_at, limit_s = self._deadlines.began_at, self._limit_s
        if began_at is None or limit_s is None or now - began_at < limit_s:
            return None
        return DeadlineExceeded(f"The embeddings were not done within {limit_s:g} s.", code="embed_timeout")

    def forget(self) -> None:
        """Free the slot although the engine never let go."""
        self._slots.release(self._ticket)
