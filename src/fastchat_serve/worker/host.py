"""The end of a link that has the workers: it runs what the other end asks for, and says how its workers are.

It drives any `Worker`; slots, limits and the proof of the contract are that worker's own. A stream whose link takes
nothing for a while is held back here, and ended once too much of it is: so a frozen caller costs a bounded
amount of memory, and a slot only until then.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final

import anyio
from anyio.abc import TaskGroup
from msgspec import Raw

from fastchat_serve.engine import ChatPrompt, Chunk, EmbedRequest, Handle, TextPrompt, TokenLogprob
from fastchat_serve.errors import DeadlineExceeded, EngineError, InvalidRequest, ModelNotFound, ServeError
from fastchat_serve.protocol.frames import LinkBroken, Unsendable, readable, written
from fastchat_serve.protocol.link import (
    Abort,
    Delta,
    Detokenize,
    Done,
    Embed,
    Embedded,
    Ended,
    Fault,
    FromCaller,
    FromHost,
    Generate,
    Gone,
    Grant,
    Load,
    Obey,
    Piece,
    Statement,
    Text,
    Tokenize,
    Tokens,
    Wake,
)
from fastchat_serve.worker.base import Worker, WorkerState
from fastchat_serve.worker.job import as_serve_error
from fastchat_serve.worker.link import Link

__all__ = ["ANNOUNCE_S", "MAX_HELD_BYTES", "WINDOW_BYTES", "Host", "Manage", "plain_size", "size_of"]

logger = logging.getLogger(__name__)

WINDOW_BYTES: Final = 64 * 1024
"""What may be on its way of one stream before the caller has said that it took some of it."""

MAX_HELD_BYTES: Final = 64 * 1024
"""What is held back of one stream that its caller does not take, before it is ended."""

_LOGPROB_BYTES: Final = 100

_SETTLED: Final = frozenset({WorkerState.READY, WorkerState.UNLOADED})
"""Workers in these states stay in them for a while."""

ANNOUNCE_S: Final = 0.1
"""How often it is looked for changes to announce. Ends of streams announce them at once."""

IDLE_S: Final = 0.5
"""The same while all workers are ready or unloaded, and nothing is under way; the link's pace if that is slower."""


Manage = Callable[[Obey], Awaitable[None]]
"""Raises `ServeError`."""


async def _manage_nothing(wanted: Obey) -> None:
    raise InvalidRequest("This worker is looked after by the process that has started it.")


class Host:
    """See the module. A `LinkEnd`: pass it to the `Link`, then set `link`.

    Args:
        workers: Those that can be called here, by id.
        tasks: Owns the calls that are waited for: embeddings and the like.
        manage: Does what operators want of the workers; by default nothing is done for them here.
    """

    link: Link[FromHost, FromCaller]

    def __init__(self, workers: Mapping[str, Worker], tasks: TaskGroup, manage: Manage | None = None) -> None:
        self._workers, self._tasks, self._manage = workers, tasks, manage or _manage_nothing
        self._streams: dict[int, _Outgoing] = {}
        self._calls: dict[int, anyio.CancelScope] = {}
        self._waiting: dict[int, str] = {}
        """Workers of the calls that take a slot, or a place in the queue."""
        self._said: dict[str, tuple[Statement, Load]] = {}
        self._freed: dict[str, None] = {}
        """Workers with streams that have ended in this turn."""
        self._timer: asyncio.TimerHandle | None = None

    def keep_announcing(self) -> None:
        """Announce what has changed, now and from now on, until the link is gone."""
        if self._timer is not None:
            self._timer.cancel()
        if not self.link.open:
            return
        try:
            self.announce()
        except Unsendable:  # it will not say it otherwise at the next link
            logger.exception("A worker cannot be called from other processes.")
            self.link.abort("what a worker says of itself cannot be passed on")
            return
        delay_s = ANNOUNCE_S if self._is_busy() else max(IDLE_S, self.link.ping_s)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self.keep_announcing)

    def announce(self) -> None:
        """Say what has changed of the workers since it was said last.

        Raises `Unsendable` if a worker's engine says of itself what cannot be passed on.
        """
        for gone in self._said.keys() - self._workers.keys():
            del self._said[gone]
            self.link.send(Gone(gone))
        for worker in self._workers.values():
            self._announce(worker)

    @property
    def busy(self) -> bool:
        """Something that this link asked for is under way."""
        return bool(self._streams or self._calls)

    def _announce(self, worker: Worker) -> None:
        statement, load = _statement(worker), self._load(worker)
        said = self._said.get(worker.id)
        if said is None or said[0] != statement:
            self.link.send(readable(statement))
        if said is None or said[1] != load:
            self.link.send(load)
        self._said[worker.id] = statement, load

    def _is_busy(self) -> bool:
        states = {worker.state for worker in self._workers.values()}
        return self.busy or not states <= _SETTLED

    # --------------------------------------------------------------------------------- the link's side

    def opened(self) -> None:
        """Whoever made the link calls `keep_announcing`."""

    def receive(self, messages: Sequence[FromCaller]) -> None:
        for message in messages:
            match message:
                case Generate(stream, worker, request):
                    self._require_new(stream)
                    outgoing = self._streams[stream] = _Outgoing(stream, self, worker)
                    try:
                        outgoing.handle = self._worker(worker).start(request, outgoing)
                    except ServeError as error:
                        outgoing.end(error)
                    if outgoing.over:
                        outgoing.abort()
                case Abort(number):
                    if (aborted := self._streams.get(number)) is not None:
                        aborted.abort()
                    elif (scope := self._calls.get(number)) is not None:
                        scope.cancel()
                case Grant(stream, size):
                    if (granted := self._streams.get(stream)) is not None:
                        granted.grant(size)
                case Embed(call, worker, request):
                    self._waiting[call] = worker
                    self._call(call, partial(self._embed, call, worker, request))
                case Tokenize(call, worker, prompt):
                    self._call(call, partial(self._tokenize, call, worker, prompt))
                case Detokenize(call, worker, token_ids):
                    self._call(call, partial(self._detokenize, call, worker, token_ids))
                case Wake(call, worker):
                    self._waiting[call] = worker
                    self._call(call, partial(self._wake, call, worker))
                case Obey():
                    self._call(message.call, partial(self._obey, message))
                case _:
                    raise LinkBroken(f"nothing can be done here with a message {type(message).__name__}")

    def silent(self) -> None:
        """Whoever it is will come back, or the link will break."""

    def heard(self) -> None:
        """It goes on where it was."""

    def closed(self, reason: str) -> None:
        """Nobody is left to hear: abort everything that this link asked for."""
        if self._timer is not None:
            self._timer.cancel()
        for outgoing in list(self._streams.values()):
            outgoing.abort()
        for scope in self._calls.values():
            scope.cancel()

    # ------------------------------------------------------------------------------------- the streams

    def forget(self, stream: int, worker_id: str, error: Exception | None) -> None:
        """A stream has ended, with `error` if that was not its own end."""
        del self._streams[stream]
        self.link.send(_ended(stream, None if error is None else as_serve_error(error, str(stream))))
        if not self._freed:
            self.link.before_leaving(self._announce_freed)  # slots are freed after this
        self._freed[worker_id] = None

    def _announce_freed(self) -> None:
        freed, self._freed = self._freed, {}
        for worker_id in freed:
            self._announce_of(worker_id)

    def _announce_of(self, worker_id: str) -> None:
        if (worker := self._workers.get(worker_id)) is not None:
            self._announce(worker)

    def _worker(self, worker_id: str) -> Worker:
        worker = self._workers.get(worker_id)
        if worker is None:
            raise ModelNotFound(worker_id)
        return worker

    def _require_new(self, number: int) -> None:
        if number in self._streams or number in self._calls:
            raise LinkBroken(f"number {number} is in use")

    def _load(self, worker: Worker) -> Load:
        load = worker.load()
        mine = sum(outgoing.worker_id == worker.id for outgoing in self._streams.values())
        mine += sum(worker_id == worker.id for worker_id in self._waiting.values())
        return Load(worker.id, load.running, load.waiting, mine, load.engine)

    # --------------------------------------------------------------------------------------- the calls

    def _call(self, number: int, work: Callable[[], Awaitable[FromHost]]) -> None:
        self._require_new(number)
        scope = self._calls[number] = anyio.CancelScope()
        self._tasks.start_soon(self._answer, number, scope, work)

    async def _answer(self, number: int, scope: anyio.CancelScope, work: Callable[[], Awaitable[FromHost]]) -> None:
        error: ServeError | None = None
        try:
            with scope:
                self.link.send(readable(await work()))
        except Exception as caught:  # the boundary to foreign code: the caller is told
            error = as_serve_error(caught, str(number))
        except anyio.get_cancelled_exc_class():
            if anyio.current_effective_deadline() == -math.inf:
                raise
            # The engine leaked a cancellation of its own: it ends this call, not all that is hosted here.
            error = EngineError("The engine cancelled this call.")
        finally:
            del self._calls[number]
            self.link.send(_ended(number, error))
            if (worker_id := self._waiting.pop(number, None)) is not None:
                self._announce_of(worker_id)

    async def _embed(self, call: int, worker: str, request: EmbedRequest) -> FromHost:
        return Embedded(call, await self._worker(worker).embed(request))

    async def _tokenize(self, call: int, worker: str, prompt: TextPrompt | ChatPrompt) -> FromHost:
        return Tokens(call, await self._worker(worker).tokenize(prompt))

    async def _detokenize(self, call: int, worker: str, token_ids: tuple[int, ...]) -> FromHost:
        return Text(call, await self._worker(worker).detokenize(token_ids))

    async def _wake(self, call: int, worker: str) -> FromHost:
        await self._worker(worker).wake()
        self._announce_of(worker)  # what comes of it is known before that it is done
        return Done(call)

    async def _obey(self, wanted: Obey) -> FromHost:
        await self._manage(wanted)
        self.announce()
        return Done(wanted.call)


_Written = tuple[Raw, bool, int]
"""A chunk as it is sent: its message, whether that is a `Delta`, and its size."""


class _Outgoing:
    """One stream: the sink of a worker, whose chunks go to the link."""

    __slots__ = ("_credit", "_ended", "_held", "_held_bytes", "_host", "_number", "handle", "over", "worker_id")

    def __init__(self, number: int, host: Host, worker_id: str) -> None:
        self._number, self._host, self.worker_id = number, host, worker_id
        self.handle: Handle | None = None
        self.over = False
        """The caller was told of its end."""
        self._credit = WINDOW_BYTES
        self._held: deque[_Written] = deque()
        self._held_bytes = 0
        self._ended = False
        """Well, and what is held is still to be sent before that is said."""

    def push(self, chunk: Chunk) -> None:
        """Raises `Unsendable`, to whom it concerns: other streams of the link hear nothing of it."""
        if self.over:
            return
        size, is_plain = size_of(chunk), _is_plain(chunk)
        number = self._number
        message = Delta(number, chunk.text, chunk.token_ids) if is_plain else Piece(number, chunk)
        ready = (readable(message), is_plain, size)
        if not self._held and self._credit > 0:
            self._send(ready)
            return
        self._held.append(ready)
        self._held_bytes += size
        if self._held_bytes > MAX_HELD_BYTES and chunk.finish_reason is None:
            logger.warning("A stream is ended: its caller has not taken %d bytes of it.", WINDOW_BYTES + MAX_HELD_BYTES)
            self._finish(DeadlineExceeded("The stream was not read for too long.", code="slow_reader"))
            self.abort()

    def end(self, error: Exception | None) -> None:
        if error is None and self._held:
            self._ended = True
        else:
            self._finish(error)

    def abort(self) -> None:
        self._held.clear()
        if self._ended:
            self._finish(None)
        elif self.handle is not None:
            self.handle.abort()

    def grant(self, size: int) -> None:
        self._credit += size
        while self._held and self._credit > 0:
            ready = self._held.popleft()
            self._held_bytes -= ready[2]
            self._send(ready)
        if self._ended and not self._held:
            self._finish(None)

    def _send(self, ready: _Written) -> None:
        message, is_plain, size = ready
        self._credit -= size
        if is_plain:
            self._host.link.send_delta(message)
        else:
            self._host.link.send(message)

    def _finish(self, error: Exception | None) -> None:
        if not self.over:
            self.over = True
            self._held.clear()
            self._host.forget(self._number, self.worker_id, error)


def size_of(chunk: Chunk) -> int:
    """About how many bytes `chunk` takes on a link and in memory; both ends count credit by it."""
    size = plain_size(chunk.text, chunk.token_ids)
    if chunk.logprobs is not None:
        size += _size_of_logprobs(chunk.logprobs)
    if chunk.reasoning:
        size += plain_size(chunk.reasoning, ())
    if chunk.tool_calls:
        size += sum(plain_size(call.name + call.arguments, ()) for call in chunk.tool_calls)
    if chunk.prompt is not None:
        size += plain_size(chunk.prompt.text, chunk.prompt.token_ids) + _size_of_logprobs(chunk.prompt.logprobs or ())
    return size


def plain_size(text: str, token_ids: tuple[int, ...], chunks: int = 1) -> int:
    """`size_of` a chunk of nothing else, or of several together."""
    text_bytes = len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
    return 16 * chunks + text_bytes + 4 * len(token_ids)


def _size_of_logprobs(logprobs: Sequence[TokenLogprob]) -> int:
    return sum(_LOGPROB_BYTES * (1 + len(entry.top)) for entry in logprobs)


def _ended(number: int, error: ServeError | None) -> Raw:
    """Whatever an engine put into its error, that it ended is told."""
    if error is None:
        return written(Ended(number))
    try:
        return readable(Ended(number, Fault.of(error)))
    except Unsendable:
        return written(Ended(number, Fault.of(EngineError("The engine failed with an error that cannot be told."))))


def _is_plain(chunk: Chunk) -> bool:
    """It has nothing but text and ids."""
    return (
        chunk.finish_reason is None
        and chunk.logprobs is None
        and chunk.prompt is None
        and not chunk.tool_calls
        and not chunk.reasoning
    )


def _statement(worker: Worker) -> Statement:
    load = worker.load()
    opened = worker.state in (WorkerState.READY, WorkerState.DRAINING)
    return Statement(
        worker.id,
        worker.names,
        worker.adapters,
        worker.speed,
        worker.state.value,
        worker.reason,
        worker.info if opened else None,
        worker.tool_parser if opened else "",
        load.slots,
        load.queue_limit,
        worker.restarts,
        worker.protocol_errors,
        worker.back_in_s if worker.state is not WorkerState.READY else 0.0,
        worker.wakes,
        worker.progress.stage,
        worker.progress.fraction,
    )
