"""The time limits of one request, and the moments they are counted from."""

from __future__ import annotations

from fastchat_serve.config import Timeouts
from fastchat_serve.errors import DeadlineExceeded

__all__ = ["Deadlines"]


class Deadlines:
    """All times are monotonic, in seconds.

    Args:
        timeouts: What the worker allows.
        timeout_s: What the request itself asks for in total; the stricter holds.
        accepted_at: When the request came.

    Attributes:
        began_at: When it was given its slot; None while it waits.
        token_at: When its newest token came; None before the first.
    """

    __slots__ = ("_accepted_at", "_timeouts", "_total_s", "began_at", "token_at")

    def __init__(self, timeouts: Timeouts, timeout_s: float | None, accepted_at: float) -> None:
        self._timeouts = timeouts
        total_s = timeouts.total_s
        self._total_s = total_s if timeout_s is None else timeout_s if total_s is None else min(timeout_s, total_s)
        self._accepted_at = accepted_at
        self.began_at: float | None = None
        self.token_at: float | None = None

    def passed(self, now: float) -> DeadlineExceeded | None:
        """The limit that has passed, as the error that says so; None if there is time left."""
        limits = self._timeouts
        if _over(self._total_s, now, self._accepted_at):
            return DeadlineExceeded(f"The request was not done within {self._total_s:g} s.", code="total_timeout")
        if self.began_at is None:
            if _over(limits.queue_s, now, self._accepted_at):
                return DeadlineExceeded(f"No slot was free within {limits.queue_s:g} s.", code="queue_timeout")
        elif self.token_at is None:
            if _over(limits.first_token_s, now, self.began_at):
                return DeadlineExceeded(f"No token came within {limits.first_token_s:g} s.", code="first_token_timeout")
        elif _over(limits.between_tokens_s, now, self.token_at):
            return DeadlineExceeded(
                f"No further token came within {limits.between_tokens_s:g} s.", code="between_tokens_timeout"
            )
        return None


def _over(limit_s: float | None, now: float, since: float) -> bool:
    return limit_s is not None and now - since >= limit_s
