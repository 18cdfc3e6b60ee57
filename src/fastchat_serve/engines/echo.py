"""The engine without a model: it streams the last user message (or the prompt) back.

For tests, benchmarks and documentation. It is deterministic, keeps the whole contract (resume,
usage, log-probabilities, embeddings), costs next to nothing, cuts text wherever it is told to, and
on command is slow, fails, stalls or leaks. Its tokens are pieces of UTF-8 bytes: a word and the white
space before it, a character, or a byte.

All streams of one delay share one step clock, as in an engine that batches: a step pushes one token
to each of them.
"""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import math
import re
import struct
from collections.abc import AsyncGenerator, Iterator
from itertools import chain, pairwise, repeat
from typing import Annotated, Literal, Self
from zlib import crc32

from msgspec import Meta, Struct

from fastchat_serve.engine import (
    CONTRACT,
    Capability,
    ChatPrompt,
    Chunk,
    Embeddings,
    EmbedRequest,
    EngineInfo,
    EngineLoad,
    GenerateRequest,
    Handle,
    PromptEcho,
    Sink,
    TextPrompt,
    TokenLogprob,
    TokenPrompt,
    Usage,
)
from fastchat_serve.errors import ContextOverflow, EngineError, InvalidRequest
from fastchat_serve.hookspecs import EngineSetup, RegisterEngine, hookimpl
from fastchat_serve.push import pull
from fastchat_serve.text import StopStrings

__all__ = ["EchoEngine", "EchoOptions"]

_WORDS = re.compile(rb"\s*\S+|\s+$")
_CHARACTERS = re.compile(rb"[\x00-\x7f]|[\xc0-\xff][\x80-\xbf]*|[\x80-\xbf]")

Count = Annotated[int, Meta(ge=0)]


class EchoOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[worker.options]`` of ``backend = "echo"``. Tokens are counted from 0."""

    loop: bool = False
    """Begin again at the end, until `max_tokens`."""
    delay_ms: Annotated[float, Meta(ge=0, le=60_000)] = 0.0
    """Time between tokens; 0: one token per turn of the event loop."""
    split: Literal["word", "character", "byte"] = "word"
    """What a token is."""
    cuts: tuple[Count, ...] = ()
    """Cut the answer's bytes at these offsets instead, also within a character."""
    prefix: str = ""
    """Text put before the answer."""
    raw: str | None = None
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
    deaf: bool = False
    """Break the contract: go on after an abort, and keep what was held."""


@hookimpl
def register_engines(register: RegisterEngine) -> None:
    register("echo", _open, contract=CONTRACT, options=EchoOptions)


def _open(setup: EngineSetup) -> EchoEngine:
    assert isinstance(setup.options, EchoOptions)
    return EchoEngine(setup.options)


class EchoEngine:
    """See the module. Attributes: `aborted`, the ids of aborted requests in order, for tests."""

    def __init__(self, options: EchoOptions | None = None) -> None:
        self._options = options or EchoOptions()
        self._clock = _StepClock(self._options.delay_ms / 1000)
        self.aborted: list[str] = []
        self.info = EngineInfo(
            context_length=self._options.context_length,
            capabilities=frozenset(
                {
                    Capability.GENERATE,
                    Capability.CHAT,
                    Capability.EMBED,
                    Capability.TOKENIZE,
                    Capability.LOGPROBS,
                    Capability.PROMPT_LOGPROBS,
                    Capability.RESUME_GREEDY,
                    Capability.RESUME_SAMPLED,
                }
            ),
            fingerprint=f"echo-{self._options.split}",
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._clock.stop()

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        stream = _Stream(self, request, sink)
        try:
            stream.prepare(self._options)
        except InvalidRequest as error:
            asyncio.get_running_loop().call_soon(stream.finish, error)
        else:
            self._clock.add(stream)
        return stream

    def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        return pull(self.start, request)

    def current_load(self) -> EngineLoad:
        return EngineLoad(running=len(self._clock.streams))

    async def embed(self, request: EmbedRequest) -> Embeddings:
        limit, size = self._options.context_length, self._options.dimensions
        texts = [list(_pieces(_prompt_bytes(prompt), self._options)) for prompt in request.inputs]
        for tokens in texts:
            if len(tokens) > limit:
                if not request.truncate:
                    raise ContextOverflow(limit=limit, prompt_tokens=len(tokens), param="input")
                del tokens[limit:]
        vectors = b"".join(_vector(b"".join(tokens), size) for tokens in texts)
        return Embeddings(vectors, size, sum(map(len, texts)))

    async def tokenize(self, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]:
        return tuple(map(_token_id, _pieces(_prompt_bytes(prompt), self._options)))

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        return _prompt_bytes(TokenPrompt(token_ids)).decode(errors="replace")

    async def render(self, prompt: ChatPrompt) -> str:
        return _prompt_bytes(prompt).decode()


class _Stream:
    """One answer: a handle for the caller, stepped by the clock."""

    def __init__(self, engine: EchoEngine, request: GenerateRequest, sink: Sink) -> None:
        self._engine, self._request, self._sink = engine, request, sink
        self._aborted = self._ended = False

    def prepare(self, options: EchoOptions) -> None:
        """Work out the answer's tokens. Raises `InvalidRequest`."""
        request, sampling = self._request, self._request.sampling
        prompt = _prompt_bytes(request.prompt)
        prompt_pieces = list(_pieces(prompt, options))
        self._prompt_tokens = len(prompt_pieces)
        room = options.context_length - self._prompt_tokens
        limit = room if sampling.max_tokens is None else sampling.max_tokens
        if room < max(limit, 1):
            raise ContextOverflow(
                limit=options.context_length, prompt_tokens=self._prompt_tokens, max_tokens=sampling.max_tokens
            )
        answer = bytes.fromhex(options.raw) if options.raw is not None else _answer_bytes(request)
        pieces = list(_pieces(options.prefix.encode() + answer, options))
        self._length = limit if options.loop and pieces else min(limit, len(pieces))
        self._cut_short = self._length < len(pieces) or options.loop
        self._tokens: Iterator[bytes] = chain.from_iterable(repeat(pieces)) if options.loop else iter(pieces)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = StopStrings(sampling.stop)
        self._count = 0
        self._echo = (
            _echo(prompt, prompt_pieces, request) if request.echo or request.prompt_logprobs is not None else None
        )
        for _ in request.resume_token_ids[: self._length]:
            self._stop.feed(self._decoder.decode(next(self._tokens)))
            self._count += 1
        self._faults = options

    def step(self) -> bool:
        """Send one token; False when the answer is over."""
        faults, count = self._faults, self._count
        if self._aborted and not faults.deaf:
            return self.finish(None)
        if count == faults.stall_at:
            return True
        if count == faults.fail_at:
            return self.finish(EngineError("The echo engine was told to fail here."))
        if count == faults.end_without_finish_at:
            return self.finish(None)
        if count >= self._length:
            self._push(b"", last=True)
            return self.finish(None)
        self._count = count + 1
        return self._push(next(self._tokens), last=self._count == self._length) or self.finish(None)

    def _push(self, piece: bytes, *, last: bool) -> bool:
        """True while the answer goes on."""
        text = self._stop.feed(self._decoder.decode(piece, last))
        matched = self._stop.matched
        if last and matched is None:
            text += self._stop.flush()
        done = last or matched is not None
        ids = (_token_id(piece),) if piece else ()
        self._sink.push(
            Chunk(
                text=text,
                token_ids=ids,
                logprobs=self._logprobs(piece),
                prompt=self._echo,
                finish_reason=None if not done else "length" if self._cut_short and matched is None else "stop",
                stop_match=matched,
                usage=Usage(self._prompt_tokens, self._count) if done else None,
            )
        )
        self._echo = None
        return not done

    def _logprobs(self, piece: bytes) -> tuple[TokenLogprob, ...] | None:
        alternatives = self._request.logprobs
        if alternatives is None:
            return None
        return (_certain(piece, alternatives),) if piece else ()

    def abort(self) -> None:
        if not self._aborted and not self._ended:
            self._aborted = True
            self._engine.aborted.append(self._request.id)

    def finish(self, error: Exception | None) -> bool:
        """Let go of the request, and tell. Returns False, for `step`."""
        if not self._ended:
            self._ended = True
            self._sink.end(error)
        return False


class _StepClock:
    """Steps every live stream once per `interval_s`, or once per turn of the loop if that is 0."""

    def __init__(self, interval_s: float) -> None:
        self.streams: list[_Stream] = []
        self._interval_s = interval_s
        self._timer: asyncio.Handle | None = None
        self._next = 0.0

    def add(self, stream: _Stream) -> None:
        self.streams.append(stream)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._next = loop.time()
            self._schedule(loop)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        streams, self.streams = self.streams, []
        for stream in streams:
            stream.finish(EngineError("The engine was closed."))

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._interval_s:
            # An overloaded clock falls behind rather than building up steps to catch up on.
            self._next = max(self._next + self._interval_s, loop.time())
            self._timer = loop.call_at(self._next, self._step, loop)
        else:
            self._timer = loop.call_soon(self._step, loop)

    def _step(self, loop: asyncio.AbstractEventLoop) -> None:
        stepping, self.streams = self.streams, []
        self._timer = None
        goes_on = [stream for stream in stepping if stream.step()]
        self.streams = goes_on + self.streams  # a sink may have started another answer meanwhile
        if self.streams and self._timer is None:
            self._schedule(loop)


def _answer_bytes(request: GenerateRequest) -> bytes:
    prompt = request.prompt
    if not isinstance(prompt, ChatPrompt):
        return _prompt_bytes(prompt)
    if prompt.continue_final:
        return prompt.messages[-1].text.encode()
    return next((m.text for m in reversed(prompt.messages) if m.role == "user"), prompt.messages[-1].text).encode()


def _prompt_bytes(prompt: TextPrompt | TokenPrompt | ChatPrompt) -> bytes:
    match prompt:
        case TextPrompt():
            return prompt.text.encode()
        case ChatPrompt():
            return "\n".join(f"{message.role}: {message.text}" for message in prompt.messages).encode()
        case TokenPrompt():
            if any(not 0 <= token < 256 for token in prompt.token_ids):
                raise InvalidRequest("Token ids of the echo engine are bytes: 0 to 255.", param="prompt")
            return bytes(prompt.token_ids)


def _pieces(data: bytes, options: EchoOptions) -> Iterator[bytes]:
    """The tokens of `data`; together they are `data` again."""
    if options.cuts:
        edges = [0, *sorted({cut for cut in options.cuts if 0 < cut < len(data)}), len(data)]
        return (data[a:b] for a, b in pairwise(edges) if a < b)
    if options.split == "byte":
        return (data[i : i + 1] for i in range(len(data)))
    pattern = _WORDS if options.split == "word" else _CHARACTERS
    return (match.group() for match in pattern.finditer(data))


def _token_id(piece: bytes) -> int:
    """A byte is its own id, so that byte tokens can be turned back into text."""
    return piece[0] if len(piece) == 1 else 256 + (crc32(piece) & 0x3FFF_FFFF)


def _certain(piece: bytes, alternatives: int) -> TokenLogprob:
    """Whatever the engine says it says with probability 1."""
    token = TokenLogprob(_token_id(piece), piece.decode(errors="replace"), piece, 0.0)
    if not alternatives:
        return token
    return TokenLogprob(token.token_id, token.text, token.data, 0.0, (token,))


def _echo(prompt: bytes, pieces: list[bytes], request: GenerateRequest) -> PromptEcho:
    logprobs = None
    if (alternatives := request.prompt_logprobs) is not None:
        first = (TokenLogprob(_token_id(piece), piece.decode(errors="replace"), piece, None) for piece in pieces[:1])
        logprobs = (*first, *(_certain(piece, alternatives) for piece in pieces[1:]))
    return PromptEcho(prompt.decode(errors="replace"), tuple(map(_token_id, pieces)), logprobs)


def _vector(data: bytes, dimensions: int) -> bytes:
    """A unit vector that depends on every byte of `data`: float32, little-endian."""
    words = struct.unpack(f"<{dimensions}h", hashlib.shake_128(data).digest(2 * dimensions))
    length = math.sqrt(sum(word * word for word in words)) or 1.0
    return struct.pack(f"<{dimensions}f", *(word / length for word in words))
