"""The end of a link that calls: what was asked of the workers at the other end and is not over yet, by number.

Slots, queue and limits are the host's. What it says of its workers is passed to them (`remote.py`); a link that goes
silent, or is gone, ends everything that was asked through it.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import anyio
from msgspec import Raw

from fastchat_serve.engine import Chunk, GenerateRequest, Handle, Sink
from fastchat_serve.errors import SHUTTING_DOWN, EngineError, PayloadTooLarge, ServeError, Unavailable
from fastchat_serve.protocol.frames import LinkBroken, Unsendable, written
from fastchat_serve.protocol.link import (
    Abort,
    Delta,
    Deltas,
    Done,
    Embedded,
    Ended,
    FromCaller,
    FromHost,
    Generate,
    Grant,
    Load,
    Piece,
    Statement,
    Text,
    Tokens,
)
from fastchat_serve.worker.host import WINDOW_BYTES, plain_size, size_of
from fastchat_serve.worker.link import Link

__all__ = ["Called", "Caller", "lost_error"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Called(Protocol):
    """What a `Caller` knows of a worker that it calls, and tells it."""

    id: str

    def stated(self, said: Statement) -> None:
        """What the worker is, by its host. May raise `LinkBroken`."""

    def loaded(self, said: Load) -> None:
        """How busy it is, by its host."""

    def lost(self) -> None:
        """Its host is silent."""

    def found(self) -> None:
        """Its host is heard again."""

    def detached(self) -> None:
        """The link to its host is gone."""

    def begun(self) -> None:
        """One more stream of ours is under way."""

    def over(self) -> None:
        """One less."""


class Caller:
    """See the module. A `LinkEnd`: pass it to the `Link`, then set `link`.

    Args:
        workers: Those that are known before anything is heard of them.
        find: The worker that a statement is about, asked for others; by default nobody wants to know of any.
        other: Takes what is not of workers; may raise `LinkBroken`, and by default does.
    """

    link: Link[FromCaller, FromHost]

    def __init__(
        self,
        workers: Iterable[Called] = (),
        *,
        find: Callable[[Statement], Called | None] = lambda said: None,
        other: Callable[[FromHost], None] | None = None,
    ) -> None:
        self._workers: dict[str, Called | None] = {worker.id: worker for worker in workers}
        self._find, self._other = find, other or _take_nothing_else
        self._numbers = itertools.count()
        self._streams: dict[int, _Incoming] = {}
        self._calls: dict[int, _Call] = {}

    # --------------------------------------------------------------------------------- for the workers

    @property
    def busy(self) -> bool:
        """Something that was asked for is under way."""
        return bool(self._streams or self._calls)

    def generate(self, worker: Called, request: GenerateRequest, sink: Sink) -> Handle:
        """Ask for a stream. Raises `PayloadTooLarge`; `sink` hears of all else."""
        number = next(self._numbers)
        asked = _written(Generate(number, worker.id, request))
        stream = self._streams[number] = _Incoming(number, worker, request.id, sink, self.link)
        worker.begun()
        self.link.send(asked)
        return stream

    async def call(self, worker: Called | None, ask: Callable[[int], FromCaller], kind: type[T]) -> T:
        """Ask for a result of this kind, and wait for it. Raises what the host's worker raised.

        With `worker` it ends if that is gone; without, what is asked for may be just that.
        """
        number = next(self._numbers)
        asked = _written(ask(number))
        call = self._calls[number] = _Call(worker)
        self.link.send(asked)
        try:
            await call.settled.wait()
        finally:
            del self._calls[number]
            if not call.answered:
                self.link.send(Abort(number))
        if isinstance(call.outcome, Exception):
            raise call.outcome
        if not isinstance(call.outcome, kind):
            raise EngineError("The worker's process sent a result of another kind.")
        return call.outcome

    def expel(self, worker: Called, error: ServeError) -> None:
        """End everything that is under way of `worker` with `error`, here and there."""
        for stream in [stream for stream in self._streams.values() if stream.worker is worker]:
            stream.give_up(error)
        for call in self._calls.values():
            if call.worker is worker:
                call.give_up(error)

    # --------------------------------------------------------------------------------- the link's side

    def opened(self) -> None:
        """The host speaks first."""

    def receive(self, messages: Sequence[FromHost]) -> None:
        fresh: dict[int, Delta | list[Delta]] = {}  # of each stream: one chunk for all that a read brings
        for message in messages:
            if type(message) is Deltas:
                for delta in message.of:
                    number = delta.stream
                    if number not in fresh:
                        fresh[number] = delta
                    elif isinstance(before := fresh[number], list):
                        before.append(delta)
                    else:
                        fresh[number] = [before, delta]
            else:
                if fresh:
                    self._pass_on(fresh)
                self._receive(message)
        if fresh:
            self._pass_on(fresh)

    def silent(self) -> None:
        """The host is frozen, or cut off: nobody waits for it."""
        for worker in self._known():
            worker.lost()
        self._end_all(lost_error())

    def heard(self) -> None:
        """What it still says of streams that were given up is for nobody."""
        for worker in self._known():
            worker.found()

    def closed(self, reason: str) -> None:
        for worker in self._known():
            worker.detached()
        self._end_all(lost_error())

    # -------------------------------------------------------------------------------------------------

    def _pass_on(self, fresh: dict[int, Delta | list[Delta]]) -> None:
        for number, came in fresh.items():
            if (stream := self._streams.get(number)) is None:
                continue
            if isinstance(came, Delta):
                stream.pass_on(came.text, came.token_ids)
            else:
                text = "".join([delta.text for delta in came])
                stream.pass_on(text, tuple([id_ for delta in came for id_ in delta.token_ids]), len(came))
        fresh.clear()

    def _receive(self, message: FromHost) -> None:
        match message:
            case Piece(number, chunk):
                if (stream := self._streams.get(number)) is not None:
                    stream.push(chunk)
            case Ended(number, fault):
                error = None if fault is None else _as_seen_here(fault.error())
                if (ended := self._streams.pop(number, None)) is not None:
                    ended.worker.over()
                    ended.end(error)
                elif (call := self._calls.get(number)) is not None:
                    call.settle(error or EngineError("The engine gave no result."))
            case Load(id_):
                if (loaded := self._workers.get(id_)) is not None:
                    loaded.loaded(message)
            case Embedded(number, value) | Tokens(number, value) | Text(number, value) | Done(number, value):
                if (answered := self._calls.get(number)) is not None:
                    answered.settle(value)
            case Statement(id_):
                if id_ not in self._workers:
                    self._workers[id_] = self._find(message)
                if (stated := self._workers[id_]) is not None:
                    stated.stated(message)
            case _:
                self._other(message)

    def _known(self) -> list[Called]:
        return [worker for worker in self._workers.values() if worker is not None]

    def forget(self, worker_id: str) -> None:
        """The host has this worker no more: what is under way of it ends."""
        worker = self._workers.pop(worker_id, None)
        if worker is not None:
            self.expel(worker, lost_error())
            worker.detached()

    def _end_all(self, error: ServeError) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.worker.over()
            stream.abandon(error)
        for call in self._calls.values():
            call.give_up(error)


def lost_error() -> EngineError:
    """For the streams of a worker whose process is gone or silent."""
    return EngineError("The worker that was making this answer is gone.", code="worker_lost")


def _as_seen_here(error: ServeError) -> ServeError:
    """That the other process shuts down is no reason to end an answer here: it may go on elsewhere."""
    if error.code != SHUTTING_DOWN:
        return error
    return Unavailable("The worker that was making this answer is shutting down.", retry_after_s=error.retry_after_s)


def _take_nothing_else(message: FromHost) -> None:
    raise LinkBroken(f"nothing can be done here with a message {type(message).__name__}")


def _written(message: FromCaller) -> Raw:
    try:
        return written(message)
    except Unsendable:
        raise PayloadTooLarge("The request is too long to be passed to the worker's process.") from None


class _Call:
    """One call that is waited for."""

    def __init__(self, worker: Called | None) -> None:
        self.worker = worker
        self.settled = anyio.Event()
        self.answered = False
        """By the host, which holds nothing for it any more."""
        self.outcome: object = None

    def settle(self, outcome: object) -> None:
        self.answered = True
        self.give_up(outcome)

    def give_up(self, outcome: object) -> None:
        if not self.settled.is_set():
            self.outcome = outcome
            self.settled.set()


class _Incoming:
    """One stream on its way here; also its handle."""

    __slots__ = ("_aborted", "_id", "_link", "_number", "_sink", "_taken", "_told", "worker")

    def __init__(self, number: int, worker: Called, id_: str, sink: Sink, link: Link[FromCaller, FromHost]) -> None:
        self._number, self.worker, self._id, self._sink, self._link = number, worker, id_, sink, link
        self._taken = 0  # bytes, since they were granted anew
        self._aborted = self._told = False

    def abort(self) -> None:
        if not (self._aborted or self._told):
            self._aborted = True
            self._link.send(Abort(self._number))

    def pass_on(self, text: str, token_ids: tuple[int, ...], deltas: int = 1) -> None:
        """Push what so many `deltas` brought, as one chunk."""
        self._taken += plain_size(text, token_ids, deltas)
        self._push(Chunk(text=text, token_ids=token_ids))

    def push(self, chunk: Chunk) -> None:
        self._taken += size_of(chunk)
        self._push(chunk)

    def _push(self, chunk: Chunk) -> None:
        if self._taken >= WINDOW_BYTES // 2:
            self._link.send(Grant(self._number, self._taken))
            self._taken = 0
        if self._aborted or self._told:
            return
        try:
            self._sink.push(chunk)
        except Exception:  # one caller's failure must not reach the other streams of the link
            logger.exception("Request %s: a chunk could not be passed on.", self._id)
            self.give_up(EngineError("A chunk of the answer could not be used."))

    def give_up(self, error: ServeError) -> None:
        """Tell the caller now that it is over, and have the host stop."""
        self._tell(error)
        if not self._aborted:
            self._aborted = True
            self._link.send(Abort(self._number))

    def abandon(self, error: ServeError) -> None:
        """The host is not to be heard: it is told to stop, for when it hears again."""
        if self._link.open:
            self._link.send(Abort(self._number))
        self._tell(error)

    def end(self, error: ServeError | None) -> None:
        self._tell(error)

    def _tell(self, error: ServeError | None) -> None:
        if self._told:
            return
        self._told = True
        try:
            self._sink.end(None if self._aborted else error)
        except Exception:  # likewise
            logger.exception("Request %s: its end could not be told.", self._id)
