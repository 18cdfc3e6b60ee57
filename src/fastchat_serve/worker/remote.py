"""A worker at the other end of a link: the interface of a local one, and no engine here.

Slots, queue and limits are the host's; here is only what is on its way. What the host says of itself is believed as
long as it is heard; a host that has gone silent is out of rotation at once, and its streams end. Whoever opens
links calls `attach`.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import anyio
from msgspec import Raw

from fastchat_serve.engine import (
    ChatPrompt,
    Chunk,
    Embeddings,
    EmbedRequest,
    EngineInfo,
    EngineLoad,
    GenerateRequest,
    Handle,
    Sink,
    TextPrompt,
)
from fastchat_serve.errors import EngineError, PayloadTooLarge, ServeError, Unavailable
from fastchat_serve.protocol.link import (
    Abort,
    Delta,
    Deltas,
    Detokenize,
    Embed,
    Embedded,
    Ended,
    FromCaller,
    FromHost,
    Generate,
    Grant,
    LinkBroken,
    Load,
    Piece,
    Statement,
    Text,
    Tokenize,
    Tokens,
    Unsendable,
    written,
)
from fastchat_serve.worker.base import WorkerLoad, WorkerState
from fastchat_serve.worker.host import WINDOW_BYTES, plain_size, size_of
from fastchat_serve.worker.link import Link

__all__ = ["LOST", "RemoteWorker", "lost_error"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOST = "Nothing is heard of its process."
"""The reason of a worker whose host is silent."""


class RemoteWorker:
    """See `base.Worker`. It is a `LinkEnd` as well: pass it to the `Link`, then `attach` that.

    Args:
        id_: What the host calls the worker.
        names: What clients call the model.
        slots, queue_limit: Until the host says how many it has.
    """

    def __init__(
        self, id_: str, names: tuple[str, ...], *, speed: float = 1.0, slots: int = 1, queue_limit: int = 0
    ) -> None:
        self.id, self.names, self.speed = id_, names, speed
        self.adapters: tuple[str, ...] = ()
        self.state = self._before = WorkerState.LOADING
        self.reason = ""
        self.restarts = 0
        self.protocol_errors = 0
        self.tool_parser = ""
        self.back_in_s = 1.0
        self._info: EngineInfo | None = None
        self._slots, self._queue_limit = slots, queue_limit
        self._others = 0
        self._embedding = 0
        self._engine_load = EngineLoad()
        self._link: Link[FromCaller, FromHost] | None = None
        self._numbers = itertools.count()
        self._streams: dict[int, _Incoming] = {}
        self._calls: dict[int, _Call] = {}
        self._idle = anyio.Event()

    # --------------------------------------------------------------------------------- the link's side

    def attach(self, link: Link[FromCaller, FromHost]) -> None:
        """Call the worker through `link` from now on."""
        self._link = link

    def receive(self, messages: Sequence[FromHost]) -> None:
        fresh: list[_Incoming] = []  # those with text that is not passed on yet: one chunk for all that a read brings
        for message in messages:
            if type(message) is Deltas:
                for delta in message.of:
                    stream = self._streams.get(delta.stream)
                    if stream is not None and stream.add(delta):
                        fresh.append(stream)
            else:
                _pass_on(fresh)
                self._receive(message)
        _pass_on(fresh)

    def silent(self) -> None:
        """The host is frozen, or cut off: nobody waits for it."""
        if self.state in (WorkerState.READY, WorkerState.DRAINING):
            logger.warning("Worker %s: %s", self.id, LOST)
            self._before = self.state
            self.state, self.reason = WorkerState.LOST, LOST
            self._end_all(lost_error())

    def heard(self) -> None:
        """What it still says of streams that were given up is for nobody."""
        if self.state is WorkerState.LOST:
            logger.warning("Worker %s is heard again.", self.id)
            self.state, self.reason = self._before, ""

    def closed(self, reason: str) -> None:
        self._link = None
        if self.state is not WorkerState.FAILED:
            self.state, self.reason = WorkerState.LOST, LOST
        self._others, self._engine_load = 0, EngineLoad()
        self._end_all(lost_error())

    # ------------------------------------------------------------------------------------- serving

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise RuntimeError("the worker is not ready")
        return self._info

    @property
    def queue_length(self) -> int:
        """Ours are counted here, to the moment; those of others as the host said last."""
        return self._others + len(self._streams) + self._embedding

    @property
    def full(self) -> bool:
        return self.queue_length >= self._slots + self._queue_limit

    def load(self) -> WorkerLoad:
        all_ = self.queue_length
        running = min(all_, self._slots)
        return WorkerLoad(running, all_ - running, self._slots, self._queue_limit, self._engine_load)

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        """As `Worker.start`; that the queue is full is told to `sink`, as the host is asked first."""
        link, number = self._ready(), next(self._numbers)
        asked = _written(Generate(number, self.id, request))
        stream = self._streams[number] = _Incoming(number, request.id, sink, link)
        link.send(asked)
        return stream

    async def embed(self, request: EmbedRequest) -> Embeddings:
        self._embedding += 1
        try:
            return await self._call(lambda number: Embed(number, self.id, request), Embeddings)
        finally:
            self._embedding -= 1

    async def tokenize(self, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]:
        return await self._call(lambda number: Tokenize(number, self.id, prompt), tuple)

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        return await self._call(lambda number: Detokenize(number, self.id, token_ids), str)

    def expel(self, error: ServeError) -> None:
        """End everything of ours that is under way with `error`."""
        for stream in list(self._streams.values()):
            stream.give_up(error)
        for call in self._calls.values():
            call.give_up(error)

    async def wait_idle(self) -> None:
        """Return when nothing of ours is under way."""
        while self._streams or self._calls:
            if self._idle.is_set():
                self._idle = anyio.Event()
            await self._idle.wait()

    # -------------------------------------------------------------------------------------------------

    def _receive(self, message: FromHost) -> None:
        match message:
            case Piece(number, chunk):
                if (stream := self._streams.get(number)) is not None:
                    stream.push(chunk)
            case Ended(number, fault):
                error = None if fault is None else fault.error()
                if (ended := self._streams.pop(number, None)) is not None:
                    ended.end(error)
                elif (call := self._calls.get(number)) is not None:
                    call.settle(error or EngineError("The engine gave no result."))
                self._tell_if_idle()
            case Embedded(number, value) | Tokens(number, value) | Text(number, value):
                if (answered := self._calls.get(number)) is not None:
                    answered.settle(value)
            case Statement():
                self._hear(message)
            case Load(_, running, waiting, of_caller, engine):
                self._others = max(0, running + waiting - of_caller)
                self._engine_load = engine
            case _:
                raise LinkBroken(f"nothing can be done here with a message {type(message).__name__}")

    def _hear(self, said: Statement) -> None:
        try:
            self.state = WorkerState(said.state)
        except ValueError:
            raise LinkBroken(f"no worker can be {said.state!r}") from None
        self.reason, self.tool_parser, self.adapters = said.reason, said.tool_parser, said.adapters
        self._info = said.info or self._info
        self._slots, self._queue_limit = said.slots, said.queue_limit
        self.restarts, self.protocol_errors = said.restarts, said.protocol_errors
        self.back_in_s = max(said.back_in_s, 1.0)

    def _end_all(self, error: ServeError) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.abandon(error)
        for call in self._calls.values():
            call.give_up(error)
        self._tell_if_idle()

    def _tell_if_idle(self) -> None:
        if not (self._streams or self._calls):
            self._idle.set()

    async def _call(self, ask: Callable[[int], FromCaller], kind: type[T]) -> T:
        link, number = self._ready(), next(self._numbers)
        asked = _written(ask(number))
        call = self._calls[number] = _Call()
        link.send(asked)
        try:
            await call.settled.wait()
        finally:
            del self._calls[number]
            if not call.answered:
                link.send(Abort(number))
            self._tell_if_idle()
        if isinstance(call.outcome, Exception):
            raise call.outcome
        if not isinstance(call.outcome, kind):
            raise EngineError("The worker's process sent a result of another kind.")
        return call.outcome

    def _ready(self) -> Link[FromCaller, FromHost]:
        if self.state is not WorkerState.READY or self._link is None or not self._link.open:
            raise Unavailable(
                f"Model {self.names[0]!r} cannot be served now: its worker is {self.state}.",
                retry_after_s=self.back_in_s,
            )
        return self._link


def lost_error() -> EngineError:
    """For the streams of a worker whose process is gone or silent."""
    return EngineError("The worker that was making this answer is gone.", code="worker_lost")


def _written(message: FromCaller) -> Raw:
    try:
        return written(message)
    except Unsendable:
        raise PayloadTooLarge("The request is too long to be passed to the worker's process.") from None


def _pass_on(fresh: list[_Incoming]) -> None:
    for stream in fresh:
        stream.pass_on()
    fresh.clear()


class _Call:
    """One call that is waited for."""

    def __init__(self) -> None:
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

    __slots__ = ("_aborted", "_id", "_ids", "_link", "_number", "_sink", "_taken", "_text", "_told")

    def __init__(self, number: int, id_: str, sink: Sink, link: Link[FromCaller, FromHost]) -> None:
        self._number, self._id, self._sink, self._link = number, id_, sink, link
        self._taken = 0  # bytes, since they were granted anew
        self._text: str | None = None  # with `_ids`, what came and is to be passed on
        self._ids: tuple[int, ...] = ()
        self._aborted = self._told = False

    def abort(self) -> None:
        if not (self._aborted or self._told):
            self._aborted = True
            self._link.send(Abort(self._number))

    def add(self, delta: Delta) -> bool:
        """Keep it for `pass_on`. Whether it is the first that is kept."""
        self._taken += plain_size(delta.text, delta.token_ids)  # of each, as the host counts them
        if self._text is None:
            self._text, self._ids = delta.text, delta.token_ids
            return True
        self._text += delta.text
        self._ids += delta.token_ids
        return False

    def pass_on(self) -> None:
        assert self._text is not None
        chunk = Chunk(text=self._text, token_ids=self._ids)
        self._text = None
        self._push(chunk)

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
