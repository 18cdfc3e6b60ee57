"""A worker whose engine is arithmetic: slots and queue are the real ones, and tokens come when they would.

Prompts are read one after the other; what a worker still has of one from earlier requests costs nothing. Then the
answer shares the decoder with the others that run (`sharing.py`). Nothing happens per token: a sink gets the first one
when it is there, and the others when the answer ends or the worker is lost.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from fastchat_serve.capabilities import FULL_SAMPLING, Capability
from fastchat_serve.engine import (
    ChatPrompt,
    Chunk,
    Embeddings,
    EmbedRequest,
    EngineInfo,
    GenerateRequest,
    Sink,
    TextPrompt,
    Usage,
)
from fastchat_serve.errors import DeadlineExceeded, EngineError, Overloaded, ServeError, Unavailable, Unsupported
from fastchat_serve.simulation.cache import PrefixCache
from fastchat_serve.simulation.sharing import Sharing
from fastchat_serve.simulation.timeline import Timeline
from fastchat_serve.simulation.trace import Arrival
from fastchat_serve.worker.base import WorkerLoad, WorkerState
from fastchat_serve.worker.slots import Slots, Ticket
from fastchat_serve.worker.watched import Watched

__all__ = ["Power", "SimulatedRequest", "SimulatedWorker"]

_CAPABILITIES = frozenset(
    {
        Capability.GENERATE,
        Capability.TOKEN_PROMPT,
        Capability.TOKEN_IDS,
        Capability.RESUME_GREEDY,
        Capability.RESUME_SAMPLED,
        *FULL_SAMPLING,
    }
)


class Power(Struct, frozen=True, kw_only=True):
    """What a worker can do."""

    slots: int
    queue: int
    queue_s: float
    """How long a request waits for a slot at most."""
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    """Of a single stream."""
    batch_tokens_per_s: float
    """Of all streams together, at most."""
    cache_tokens: int


class SimulatedRequest(GenerateRequest, frozen=True, kw_only=True):
    """A request, with what only the simulation knows of it."""

    arrival: Arrival
    granted: Callable[[], None]
    """Called whenever it gets a slot."""


class SimulatedWorker(Watched):
    """See the module, and `base.Worker`.

    Attributes:
        tokens: Read and written so far, without those that were in the cache.
        prompts: Tokens of the prompts, with them.
        cached: These alone.
        longest_queue: So far.
    """

    protocol_errors = 0
    tool_parser = ""
    adapters: tuple[str, ...] = ()

    def __init__(self, id_: str, names: tuple[str, ...], power: Power, timeline: Timeline, *, speed: float) -> None:
        self.id, self.names, self.power, self.speed = id_, names, power, speed
        self.info = EngineInfo(context_length=2**31, capabilities=_CAPABILITIES, fingerprint=names[0])
        self.reason, self.restarts, self.back_in_s = "", 0, 1.0
        self.tokens = self.prompts = self.cached = self.longest_queue = 0
        self._timeline = timeline
        self._cache = PrefixCache(power.cache_tokens)
        self._answers: dict[_Answer, None] = {}
        self._reads_until = 0.0
        self._begin()

    @property
    def queue_length(self) -> int:
        return self._slots.running + self._slots.waiting

    @property
    def full(self) -> bool:
        return self._slots.full

    def load(self) -> WorkerLoad:
        slots = self._slots
        return WorkerLoad(slots.running, slots.waiting, slots.count, slots.queue_limit)

    def start(self, request: GenerateRequest, sink: Sink) -> _Answer:
        if self.state is not WorkerState.READY:
            raise Unavailable(f"This worker is {self.state}.", retry_after_s=self.back_in_s)
        assert isinstance(request, SimulatedRequest)
        answer = _Answer(self, request, sink)
        self._answers[answer] = None
        try:
            self._slots.acquire(answer.ticket)
        except Overloaded:
            del self._answers[answer]
            raise
        self.longest_queue = max(self.longest_queue, self.queue_length)
        if answer.ticket.granted_at is None:
            self._timeline.after(self.power.queue_s, answer.give_up_waiting)
        return answer

    async def embed(self, request: EmbedRequest) -> Embeddings:
        raise Unsupported("This is a simulation.")

    async def tokenize(self, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]:
        raise Unsupported("This is a simulation.")

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        raise Unsupported("This is a simulation.")

    def lose(self, back_in_s: float) -> None:
        """Its process dies; another that has read nothing yet takes its place after so many seconds."""
        if self.state is WorkerState.LOST:
            return
        self.restarts += 1
        self.reason, self.back_in_s = "lost", back_in_s
        answers, self._answers = self._answers, {}
        for answer in answers:
            answer.stop()
        self.state = WorkerState.LOST
        self._cache.clear()
        self._timeline.after(back_in_s, self._begin)
        for answer in answers:
            answer.end(EngineError("The worker that was making this answer is gone.", code="worker_lost"))

    # ----------------------------------------------------------------------------- what answers use

    def read(self, request: SimulatedRequest, done: Callable[[], None]) -> int:
        """Read the prompt, and what was written of the answer before. How many tokens of it were in the cache."""
        arrival = request.arrival
        cached = self._cache.read(arrival.blocks, arrival.block_tokens)
        whole = arrival.prompt_tokens + len(request.resume_token_ids)
        self.tokens += whole - cached
        self.prompts += whole
        self.cached += cached
        seconds = (whole - cached) / self.power.prefill_tokens_per_s
        self._reads_until = max(self._reads_until, self._timeline.now) + seconds
        self._timeline.at(self._reads_until, done)
        return cached

    def write(self, answer: _Answer, tokens: int) -> None:
        self._decoder.add(answer, tokens)

    def written(self, answer: _Answer) -> int:
        """How many tokens were, of one that ends early."""
        return self._decoder.remove(answer)

    def let_go(self, answer: _Answer) -> None:
        self._answers.pop(answer, None)
        self._slots.release(answer.ticket)

    # -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        power = self.power
        self._slots = Slots(power.slots, power.queue, self._timeline.clock, changed=lambda: self.on_change())
        self._decoder = Sharing(self._timeline, power.decode_tokens_per_s, power.batch_tokens_per_s, _Answer.finish)
        self._reads_until = 0.0
        self.state, self.reason = WorkerState.READY, ""


class _Answer:
    """One answer; also its handle."""

    __slots__ = ("_cached", "_left", "_over", "_request", "_sink", "_stopped", "_worker", "_writing", "ticket")

    def __init__(self, worker: SimulatedWorker, request: SimulatedRequest, sink: Sink) -> None:
        self._worker, self._request, self._sink = worker, request, sink
        self.ticket = Ticket(self._granted, self._give_way, request.priority, request.tenant)
        self._left = max(0, request.arrival.output_tokens - len(request.resume_token_ids))
        """Tokens to write."""
        self._cached = 0
        self._writing = self._over = self._stopped = False

    def abort(self) -> None:
        self._leave(None)

    def give_up_waiting(self) -> None:
        if self.ticket.granted_at is None:
            self._leave(DeadlineExceeded("It waited too long for a slot.", code="queue_timeout"))

    def stop(self) -> None:
        """Its worker is lost: it gets no further, and what it has written so far is known."""
        self._stopped = True
        if self._writing:
            self._left = min(self._left, self._worker.written(self))

    def end(self, error: ServeError) -> None:
        """After `stop`."""
        if self._over:
            return
        self._over = True
        if self._writing and self._left:
            self._push(self._left)
        self._sink.end(error)

    def finish(self) -> None:
        """All tokens are written."""
        request, left = self._request, self._left
        self._over, self._writing = True, False
        self._worker.let_go(self)
        usage = Usage(request.arrival.prompt_tokens, request.arrival.output_tokens, self._cached)
        self._worker.tokens += left
        self._sink.push(Chunk(token_ids=(0,) * left, finish_reason="length", usage=usage))
        self._sink.end(None)

    # -------------------------------------------------------------------------------------------------

    def _granted(self) -> None:
        self._request.granted()
        self._cached = self._worker.read(self._request, self._read)

    def _read(self) -> None:
        """The prompt is read, which makes the first token."""
        if self._over or self._stopped:
            return
        if self._left <= 1:
            self.finish()
            return
        self._push(1)
        self._left -= 1
        self._writing = True
        self._worker.write(self, self._left)

    def _push(self, tokens: int) -> None:
        self._worker.tokens += tokens
        self._sink.push(Chunk(token_ids=(0,) * tokens))

    def _give_way(self, error: Overloaded) -> None:
        self._leave(error)

    def _leave(self, error: ServeError | None) -> None:
        """Before its end."""
        if self._over or self._stopped:
            return
        self._over = True
        if self._writing:
            self._worker.written(self)
        self._worker.let_go(self)
        self._sink.end(error)
