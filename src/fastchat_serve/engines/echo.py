"""The engine without a model: it streams the last user message (or the prompt) back.

For tests, benchmarks and documentation. It is deterministic, keeps the whole contract (resume,
usage, log-probabilities, embeddings), costs next to nothing, cuts text wherever it is told to, and
on command is slow, fails, stalls or leaks. `echo_tokens.py` has its tokens.

All streams share one step clock, as in an engine that batches: a step pushes one token to each of them.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncGenerator, Iterator
from itertools import chain, islice, repeat
from typing import Annotated, Self
from zlib import crc32

import msgspec
from msgspec import Meta, Struct

from fastchat_serve.engine import (
    CONTRACT,
    FULL_SAMPLING,
    Capability,
    ChatPrompt,
    Chunk,
    Embeddings,
    EmbedRequest,
    EngineInfo,
    EngineLoad,
    FinishReason,
    GenerateRequest,
    Handle,
    PromptEcho,
    Sink,
    TextPrompt,
    TokenLogprob,
    TokenPrompt,
    Usage,
)
from fastchat_serve.engines.echo_tokens import Split, certain, encode, pieces, prompt_bytes, token_id, unit_vector
from fastchat_serve.errors import ContextOverflow, EngineError, InvalidRequest, ServeError
from fastchat_serve.hookspecs import EngineSetup, RegisterEngine, hookimpl
from fastchat_serve.push import pull
from fastchat_serve.text import StopStrings

__all__ = ["EchoEngine", "EchoOptions"]

Count = Annotated[int, Meta(ge=0)]


class EchoOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[worker.options]`` of ``backend = "echo"``. Tokens are counted from 0."""

    loop: bool = False
    """Begin again at the end, until `max_tokens`."""
    delay_ms: Annotated[float, Meta(ge=0, le=60_000)] = 0.0
    """Time between tokens; 0: one token per turn of the event loop."""
    split: Split = "word"
    """What a token is."""
    cuts: tuple[Count, ...] = ()
    """Cut the answer's bytes at these offsets instead, also within a character."""
    prefix: str = ""
    """Text put before the answer."""
    raw: Annotated[str, Meta(pattern="^([0-9a-fA-F]{2})*$", title="pairs of hexadecimal digits")] | None = None
    """Hexadecimal bytes to answer with, whatever was asked; they need not be valid UTF-8."""
    context_length: Annotated[int, Meta(ge=1)] = 131_072
    dimensions: Annotated[int, Meta(ge=1, le=4096)] = 64
    """Length of embeddings."""
    fail_at: Count | None = None
    """Raise instead of sending this token."""
    stall_at: Count | None = None
    """Never send this token."""
    end_without_finish_at: Count | None = None
    """Break the contract: end silently instead of sending this token."""
    die_at: Count | None = None
    """Break for good, with all answers under way, instead of sending this token."""
    deaf: bool = False
    """Break the contract: go on after an abort, as if nobody had called it."""
    leak: bool = False
    """Break the contract: keep every request for ever, and never say that it has ended."""


@hookimpl
def register_engines(register: RegisterEngine) -> None:
    most = _capabilities(EchoOptions(split="byte"))
    register("echo", _open, contract=CONTRACT, options=EchoOptions, capabilities=most)


def _open(setup: EngineSetup) -> EchoEngine:
    assert isinstance(setup.options, EchoOptions)
    return EchoEngine(setup.options)


class EchoEngine:
    """See the module.

    Attributes:
        streams: All answers under way, oldest first.
        aborted: The ids of aborted requests in order, for tests.
        fatal_error: See `Engine`.
    """

    def __init__(self, options: EchoOptions | None = None) -> None:
        self.options = options = options or EchoOptions()
        self.streams: dict[_Stream, None] = {}
        self.aborted: list[str] = []
        self.fatal_error: BaseException | None = None
        self._clock = _StepClock(options.delay_ms / 1000)
        self.info = EngineInfo(
            context_length=options.context_length,
            capabilities=_capabilities(options),
            fingerprint=_fingerprint(options),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._clock.stop()
        self._end_all("The engine was closed.")
        self.streams.clear()

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        stream = _Stream(self, request, sink)
        self.streams[stream] = None
        try:
            if self.fatal_error is not None:
                raise EngineError("The engine is dead.")
            stream.prepare()
        except ServeError as error:
            asyncio.get_running_loop().call_soon(stream.finish, error)
        else:
            self._clock.add(stream)
        return stream

    def die(self) -> None:
        """Break for good."""
        self.fatal_error = RuntimeError("The echo engine was told to die here.")
        self._end_all("The engine died.")

    def _end_all(self, why: str) -> None:
        for stream in tuple(self.streams):
            stream.finish(EngineError(why))

    def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        return pull(self.start, request)

    def current_load(self) -> EngineLoad:
        return EngineLoad(running=len(self.streams))

    async def embed(self, request: EmbedRequest) -> Embeddings:
        limit, size = self.options.context_length, self.options.dimensions
        texts = [self.tokens(prompt_bytes(prompt)) for prompt in request.inputs]
        for tokens in texts:
            if len(tokens) > limit:
                if not request.truncate:
                    raise ContextOverflow(limit=limit, prompt_tokens=len(tokens), param="input")
                del tokens[limit:]
        vectors = b"".join(unit_vector(b"".join(tokens), size) for tokens in texts)
        return Embeddings(vectors, size, sum(map(len, texts)))

    async def tokenize(self, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]:
        return tuple(map(token_id, self.tokens(prompt_bytes(prompt))))

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        return prompt_bytes(TokenPrompt(token_ids)).decode(errors="replace")

    async def render(self, prompt: ChatPrompt) -> str:
        return prompt_bytes(prompt).decode()

    def tokens(self, data: bytes) -> list[bytes]:
        return pieces(data, self.options.split, self.options.cuts)


class _Stream:
    """One answer: a handle for the caller, stepped by the clock."""

    def __init__(self, engine: EchoEngine, request: GenerateRequest, sink: Sink) -> None:
        self._engine, self._request, self._sink = engine, request, sink
        self._aborted = self._ended = False

    def prepare(self) -> None:
        """Work out the answer's tokens. Raises `InvalidRequest`."""
        options, request, sampling = self._engine.options, self._request, self._request.sampling
        if isinstance(request.prompt, ChatPrompt) and request.prompt.template_options:
            raise InvalidRequest("The echo engine has no chat template to set.", param="chat_template_kwargs")
        prompt = prompt_bytes(request.prompt)
        prompt_pieces = self._engine.tokens(prompt)
        self._prompt_tokens = len(prompt_pieces)
        room = options.context_length - self._prompt_tokens
        limit = room if sampling.max_tokens is None else sampling.max_tokens
        least = 1 if sampling.max_tokens is None else sampling.max_tokens
        if room < least:
            raise ContextOverflow(
                limit=options.context_length,
                prompt_tokens=self._prompt_tokens,
                max_tokens=least,
                param="messages" if isinstance(request.prompt, ChatPrompt) else "prompt",
            )
        answer = self._engine.tokens(_answer_bytes(request, options))
        whole = max(len(answer), sampling.min_tokens) if answer else 0
        endless = bool(answer) and (options.loop or sampling.ignore_eos)
        self._length = limit if endless else min(limit, whole)
        self._cut_short = endless or self._length < whole
        self._tokens: Iterator[bytes] = chain.from_iterable(repeat(answer))
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = StopStrings(sampling.stop)
        self._echo = (
            _echo(prompt, prompt_pieces, request) if request.echo or request.prompt_logprobs is not None else None
        )
        self._count = min(len(request.resume_token_ids), self._length)
        for piece in islice(self._tokens, self._count):
            self._stop.feed(self._decoder.decode(piece))
        if self._count == self._length:  # the earlier run delivered what was held back, too
            self._stop.feed(self._decoder.decode(b"", final=True))
            self._stop.flush()

    def step(self) -> bool:
        """Send one token; False when there is nothing more to step."""
        faults, count = self._engine.options, self._count
        if self._ended or (self._aborted and not faults.deaf) or count == faults.stall_at:
            return False
        if count == faults.fail_at:
            return self.finish(EngineError("The echo engine was told to fail here."))
        if count == faults.end_without_finish_at:
            return self.finish(None)
        if count == faults.die_at:
            self._engine.die()
            return False
        if count >= self._length or self._stop.matched is not None:  # no token is left, only the end
            self._push(b"", last=True)
            return self.finish(None)
        self._count = count + 1
        return self._push(next(self._tokens), last=self._count == self._length) or self.finish(None)

    def _push(self, piece: bytes, *, last: bool) -> bool:
        """True while the answer goes on."""
        sampling = self._request.sampling
        ids = (token_id(piece),) if piece else ()
        stop_id = next((i for i in ids if i in sampling.stop_token_ids and self._count > sampling.min_tokens), None)
        last = last or stop_id is not None
        # A stop token counts, but is no part of the text.
        text = self._stop.feed(self._decoder.decode(b"" if stop_id is not None else piece, last))
        if last:
            text += self._stop.flush()
        stopped_by = stop_id if self._stop.matched is None else self._stop.matched
        done = last or stopped_by is not None
        finish_reason: FinishReason = "length" if self._cut_short and stopped_by is None else "stop"
        self._sink.push(
            Chunk(
                text=text,
                token_ids=ids,
                logprobs=self._logprobs(piece),
                prompt=self._echo,
                finish_reason=finish_reason if done else None,
                stop_match=stopped_by,
                usage=Usage(self._prompt_tokens, self._count) if done else None,
            )
        )
        self._echo = None
        return not done

    def _logprobs(self, piece: bytes) -> tuple[TokenLogprob, ...] | None:
        alternatives = self._request.logprobs
        if alternatives is None:
            return None
        return (certain(piece, alternatives),) if piece else ()

    def abort(self) -> None:
        if self._aborted or self._ended:
            return
        self._aborted = True
        self._engine.aborted.append(self._request.id)
        if not self._engine.options.deaf:
            asyncio.get_running_loop().call_soon(self.finish, None)

    def finish(self, error: Exception | None) -> bool:
        """Let go of the request, and tell. Returns False, for `step`."""
        if not self._ended:
            self._ended = True
            if not self._engine.options.leak:
                del self._engine.streams[self]
                self._sink.end(None if self._aborted else error)
        return False


class _StepClock:
    """Steps every stream once per `interval_s`, or once per turn of the loop if that is 0."""

    def __init__(self, interval_s: float) -> None:
        self._streams: list[_Stream] = []
        self._interval_s = interval_s
        self._timer: asyncio.Handle | None = None
        self._next = 0.0

    def add(self, stream: _Stream) -> None:
        self._streams.append(stream)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._next = loop.time()
            self._schedule(loop)

    def stop(self) -> None:
        self._streams = []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._interval_s:
            # An overloaded clock falls behind rather than building up steps to catch up on.
            self._next = max(self._next + self._interval_s, loop.time())
            self._timer = loop.call_at(self._next, self._step, loop)
        else:
            self._timer = loop.call_soon(self._step, loop)

    def _step(self, loop: asyncio.AbstractEventLoop) -> None:
        stepping, self._streams = self._streams, []
        self._timer = None
        goes_on = [stream for stream in stepping if stream.step()]
        self._streams = goes_on + self._streams  # a sink may have started another answer meanwhile
        if self._streams and self._timer is None:
            self._schedule(loop)


def _capabilities(options: EchoOptions) -> frozenset[Capability]:
    always = {
        Capability.GENERATE,
        Capability.TEXT_PROMPT,
        Capability.TOKEN_PROMPT,
        Capability.CHAT,
        Capability.RENDER,
        Capability.EMBED,
        Capability.TOKEN_IDS,
        Capability.ECHO,
        Capability.SEED,
        Capability.LOGPROBS,
        Capability.PROMPT_LOGPROBS,
        Capability.RESUME_GREEDY,
        Capability.RESUME_SAMPLED,
        *FULL_SAMPLING - {Capability.LOGIT_BIAS},  # there is nothing to draw, so nothing to weigh either
    }
    ids_tell_tokens = options.split != "word" and not options.cuts
    return frozenset(always | {Capability.TOKENIZE} if ids_tell_tokens else always)


def _fingerprint(options: EchoOptions) -> str:
    """Equal for engines that give the same answers, however slow or broken they are."""
    same = (options.loop, options.split, options.cuts, options.prefix, options.raw)
    return f"echo-{crc32(msgspec.json.encode(same)):08x}"


def _answer_bytes(request: GenerateRequest, options: EchoOptions) -> bytes:
    prompt = request.prompt
    if options.raw is not None:
        answer = bytes.fromhex(options.raw)
    elif not isinstance(prompt, ChatPrompt):
        answer = prompt_bytes(prompt)
    else:
        last = prompt.messages[-1].text
        user = (message.text for message in reversed(prompt.messages) if message.role == "user")
        answer = encode(last if prompt.continue_final else next(user, last))
    return encode(options.prefix) + answer


def _echo(prompt: bytes, tokens: list[bytes], request: GenerateRequest) -> PromptEcho:
    logprobs = None
    if (alternatives := request.prompt_logprobs) is not None:
        first = (TokenLogprob(token_id(piece), piece.decode(errors="replace"), piece, None) for piece in tokens[:1])
        logprobs = (*first, *(certain(piece, alternatives) for piece in tokens[1:]))
    return PromptEcho(prompt.decode(errors="replace"), tuple(map(token_id, tokens)), logprobs)
