"""An answer that outlives its worker: it is begun again elsewhere, or goes on there, and its reader does not notice.

Before the first chunk a request can be retried on any worker. After it, the answer is resumed on one with the same
fingerprint: the tokens that were delivered go along as `resume_token_ids`, so that no text comes twice and none is
missing, and the usage counts the whole. Where neither can be, the error that ended it is its one end.

What moves is bounded in three ways. Nothing moves twice without progress in between, so that a request which kills its
engine takes at most two along. While workers live and fail, retries are a share of what is under way (a retry budget,
as Envoy has), so that they cannot become a storm. And nothing moves once its time is over.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, NoReturn, Protocol

from msgspec.structs import replace

from fastchat_serve.controller.members import Member
from fastchat_serve.engine import Chunk, GenerateRequest, Handle, Sink, TextPrompt, TokenPrompt
from fastchat_serve.errors import SHUTTING_DOWN, EngineError, EngineProtocolError, Overloaded, ServeError, Unavailable

__all__ = ["LEAST_RETRIES", "RETRY_SHARE", "Find", "Moves", "MovingAnswer", "about_tokens", "raise_soonest"]

RETRY_SHARE: Final = 0.1
"""Of the answers under way, as many may be retries after an engine's error."""

LEAST_RETRIES: Final = 3
"""So many may be, however few answers are under way."""

_CHARS_PER_TOKEN: Final = 4
_USUAL_ANSWER: Final = 512


class Find(Protocol):
    """Finds workers that can take a request, the best first."""

    def __call__(
        self, request: GenerateRequest, tried: tuple[str, ...], fingerprint: str, *, with_room: bool, why: str
    ) -> Iterator[Member]:
        """None of those `tried`, with this fingerprint unless it is empty, and no full ones if it is to be `with_room`.

        `why` it moves, in a word; empty at first.
        """
        ...


def about_tokens(request: GenerateRequest) -> int:
    """To read and to write for `request`: a rough guess, which is all that is known before there is a tokenizer."""
    prompt = request.prompt
    if isinstance(prompt, TokenPrompt):
        read = len(prompt.token_ids)
    elif isinstance(prompt, TextPrompt):
        read = len(prompt.text) // _CHARS_PER_TOKEN
    else:
        read = sum([len(message.text) for message in prompt.messages]) // _CHARS_PER_TOKEN
    wanted = request.sampling.max_tokens
    return 1 + read + (_USUAL_ANSWER if wanted is None else min(wanted, _USUAL_ANSWER))


def raise_soonest(refusals: list[ServeError]) -> NoReturn:
    """Raise what was said by the worker that can be asked again first, of those that refused; there was one at least.

    The list is emptied: the error's traceback holds who has it.
    """
    try:
        raise min(refusals, key=lambda refusal: refusal.retry_after_s or 0.0)
    finally:
        refusals.clear()


class Moves:
    """What all answers of a dispatcher share.

    Args:
        clock: Monotonic time in seconds.

    Attributes:
        counts: Answers that moved: ``retried`` before their first chunk, ``resumed`` after it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.counts: Counter[str] = Counter(retried=0, resumed=0)
        self.live = self.retrying = 0

    def may_retry(self) -> bool:
        """Whether the budget has room for one more retry."""
        return self.retrying < max(LEAST_RETRIES, RETRY_SHARE * self.live)


class MovingAnswer:
    """One answer: the sink of whichever worker makes it now, and the handle of its reader.

    Args:
        sink: Its reader's.
        find: See `Find`.
    """

    __slots__ = (
        "_aborted",
        "_begun",
        "_find",
        "_fingerprint",
        "_handle",
        "_is_retry",
        "_load",
        "_member",
        "_moved_at",
        "_moves",
        "_over",
        "_request",
        "_resumable",
        "_sink",
        "_started_at",
        "_token_ids",
        "_tried",
    )

    def __init__(self, request: GenerateRequest, sink: Sink, *, find: Find, moves: Moves) -> None:
        self._request, self._sink = request, sink
        self._find, self._moves = find, moves
        self._started_at = moves.clock()
        self._member: Member
        self._fingerprint = ""
        """Of its worker."""
        self._handle: Handle | None = None
        self._load = 0
        """Its share of the work of its worker."""
        self._token_ids: list[int] = []
        self._tried: tuple[str, ...] = ()
        self._moved_at: int | None = None
        """How many tokens there were when it moved last."""
        self._begun = self._resumable = self._aborted = self._is_retry = self._over = False

    def start(self) -> MovingAnswer:
        """Begin on the best worker that takes it. The sink was not touched if it raises.

        Raises:
            ServeError: Nobody is able to take it, or all refuse: then it is who can be asked again first.
        """
        refusals: list[ServeError] = []
        if not self._start(self._request, refusals):
            raise_soonest(refusals)
        self._moves.live += 1
        return self

    # ------------------------------------------------------------------------------- the reader's side

    def abort(self) -> None:
        self._aborted = True
        if self._handle is not None:
            self._handle.abort()

    # ------------------------------------------------------------------------------- the worker's side

    def push(self, chunk: Chunk) -> None:
        self._begun = True
        self._token_ids += chunk.token_ids
        self._sink.push(chunk)

    def end(self, error: Exception | None) -> None:
        self._lay_down()
        if error is not None and not self._aborted and self._move(error):
            return
        self._over, self._handle = True, None  # the handle holds us
        self._moves.live -= 1
        self._moves.retrying -= self._is_retry
        self._sink.end(error)

    # -------------------------------------------------------------------------------------------------

    def _lay_down(self) -> None:
        """Its worker has nothing to do for it any more."""
        if self._load:
            self._member.charge(-self._load)
            self._load = 0

    def _move(self, error: Exception) -> bool:
        """Go on elsewhere; False if that cannot be."""
        refused = not self._begun and isinstance(error, Overloaded | Unavailable)
        if not refused and not self._may_move(error):
            return False
        request = self._rest()
        if request is None:
            return False
        if not refused:
            if self._moved_at is not None:  # there was progress: who was tried before may have recovered
                self._tried = (self._member.id,)
            self._moved_at = len(self._token_ids)
        try:
            # Who was turned away turns nobody else away.
            if not self._start(request, [], with_room=refused, why=_in_a_word(error)):
                return False
        except ServeError:  # nobody is able any more: what ended it first says more
            return False
        if not refused:
            self._moves.counts["resumed" if self._begun else "retried"] += 1
        return True

    def _may_move(self, error: Exception) -> bool:
        if isinstance(error, EngineProtocolError) or not isinstance(error, EngineError | Unavailable):
            return False
        if error.code == SHUTTING_DOWN or self._moved_at == len(self._token_ids):
            return False
        if isinstance(error, Unavailable) or error.code == "worker_lost" or self._is_retry:
            return True  # the worker is out: a move adds nothing to the load
        self._is_retry = self._moves.may_retry()
        self._moves.retrying += self._is_retry
        return self._is_retry

    def _rest(self) -> GenerateRequest | None:
        """What is still to be done, as a request; None if nobody could do it."""
        request = self._request
        if request.timeout_s is not None:
            left_s = request.timeout_s - (self._moves.clock() - self._started_at)
            if left_s <= 0:
                return None
            request = replace(request, timeout_s=left_s)
        if not self._begun:
            return request
        if not self._resumable:
            return None
        return replace(request, resume_token_ids=(*request.resume_token_ids, *self._token_ids))

    def _start(
        self, request: GenerateRequest, refusals: list[ServeError], *, with_room: bool = False, why: str = ""
    ) -> bool:
        """Begin on the best worker that takes it; False if none does."""
        fingerprint = self._fingerprint if self._begun else ""
        for member in self._find(request, self._tried, fingerprint, with_room=with_room, why=why):
            self._tried = (*self._tried, member.id)
            self._member, self._handle = member, None
            kind = member.seen.kind
            assert kind is not None, "it is among those that take requests"
            self._fingerprint, self._resumable = kind.fingerprint, kind.resumes
            try:
                handle = member.worker.start(request, self)
            except (Overloaded, Unavailable) as error:
                refusals.append(error.with_traceback(None))  # that would hold us
                continue
            if not self._over and self._member is member:  # else it has ended, or moved on, already
                self._handle = handle
                self._load = about_tokens(request)
                member.charge(self._load)
            if self._aborted:
                handle.abort()
            return True
        return False


def _in_a_word(error: Exception) -> str:
    return (error.code if isinstance(error, ServeError) else None) or type(error).__name__
