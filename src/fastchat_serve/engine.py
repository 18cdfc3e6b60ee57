"""What every engine promises, whatever library sits behind it: the contract, version 1.

An engine turns one `GenerateRequest` into a stream of `Chunk`s. It knows nothing of HTTP, OpenAI
or other workers. Chunks carry *new* text only; the last one carries `finish_reason` and `usage`.
Closing the stream early is how a caller aborts, so an engine releases the request in ``finally``.

The stream has two forms. `Engine.generate_stream` is the contract: an async generator. An engine
that steps a whole batch at once may also be a `PushEngine` and put chunks straight into sinks,
which spares a task switch per token. `push.py` turns either form into the other.

Its parts, all of which can be had from here: `capabilities.py`, `constraints.py`, `requests.py`, and `requirements.py`,
which says what a request needs. Internal types, not wire types: `protocol/` has those.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Literal, Protocol, Self, runtime_checkable

from msgspec import Struct

from fastchat_serve.capabilities import FULL_SAMPLING, Capability
from fastchat_serve.constraints import (
    Choice,
    Constraint,
    Grammar,
    JsonObject,
    JsonSchema,
    Regex,
    constraint_param,
)
from fastchat_serve.requests import (
    ChatPrompt,
    EmbedRequest,
    GenerateRequest,
    Message,
    SamplingParams,
    TextPart,
    TextPrompt,
    TokenPrompt,
    ToolCall,
    ToolSpec,
)
from fastchat_serve.requirements import missing_methods, required_capabilities

__all__ = [
    "CONTRACT",
    "FULL_SAMPLING",
    "Capability",
    "ChatPrompt",
    "Choice",
    "Chunk",
    "Constraint",
    "EmbedRequest",
    "Embeddings",
    "Embeds",
    "Engine",
    "EngineInfo",
    "EngineLoad",
    "FinishReason",
    "GenerateRequest",
    "Grammar",
    "Handle",
    "JsonObject",
    "JsonSchema",
    "Message",
    "PromptEcho",
    "PushEngine",
    "Regex",
    "Renders",
    "SamplingParams",
    "Sink",
    "TextPart",
    "TextPrompt",
    "TokenLogprob",
    "TokenPrompt",
    "Tokenizes",
    "ToolCall",
    "ToolSpec",
    "Usage",
    "constraint_param",
    "missing_methods",
    "required_capabilities",
]

CONTRACT = 1
"""The version that this module describes. A plugin states the one it was written for."""

FinishReason = Literal["stop", "length"]
"""``stop``: a stop token or stop string; ``length``: `max_tokens` or the context was used up."""


# ------------------------------------------------------------------------------------------- answer


class Usage(Struct, frozen=True):
    """Token counts of one answer. The stop token that ends it counts; held-back text counts too."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Those of `prompt_tokens` whose keys and values were found in a cache."""


class TokenLogprob(Struct, frozen=True):
    """One token and the natural logarithm of its probability before temperature and filters.

    `data` is the token's exact bytes; `text` shows them, with U+FFFD for an incomplete character.
    """

    token_id: int
    """-1 where the engine is not told: behind an API, for instance."""
    text: str
    data: bytes
    logprob: float | None
    """None for the first token of a prompt, which nothing predicts."""
    top: tuple[TokenLogprob, ...] = ()
    """Most likely alternatives at this position, best first; empty inside alternatives."""


class PromptEcho(Struct, frozen=True):
    """The prompt as the engine saw it; `logprobs`, if asked for, has one entry per token."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None


class Chunk(Struct, frozen=True, kw_only=True, gc=False):
    """A piece of an answer.

    `text` is new text: concatenated over all chunks it is the whole answer, every code point
    complete. It can be empty when characters or possible stop strings are held back. `token_ids`
    are those drawn since the chunk before, so text and ids of one chunk need not match.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One per entry of `token_ids`, if asked for."""
    prompt: PromptEcho | None = None
    """In the first chunk, if asked for."""
    reasoning: str = ""
    """New text of what the model thinks before it answers, from an engine that tells the two apart itself."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that have become complete, from an engine that declares `TOOL_CALLS`."""
    finish_reason: FinishReason | None = None
    """Set on the last chunk and on no other."""
    stop_match: str | int | None = None
    """The stop string or stop token that ended the answer, on the last chunk."""
    usage: Usage | None = None
    """Set on the last chunk."""


class Embeddings(Struct, frozen=True):
    """One vector per input.

    `data` is their float32 values, little-endian, row by row: ``len(inputs) * dimensions * 4`` bytes,
    each row of Euclidean length 1.
    """

    data: bytes
    dimensions: int
    prompt_tokens: int


# ------------------------------------------------------------------------------------------- engine


class EngineInfo(Struct, frozen=True, kw_only=True):
    """What an open engine says about itself."""

    contract: int = CONTRACT
    context_length: int
    """Tokens of prompt and answer together."""
    capabilities: frozenset[Capability]
    dtype: str = ""
    device: str = ""
    fingerprint: str = ""
    """Equal fingerprints mean equal weights, tokenizer and chat template: such engines can take over each other's
    streams."""
    sampling: SamplingParams = SamplingParams()
    """What the model's makers advise. `temperature`, `top_p`, `top_k`, `min_p` and `repetition_penalty` are used
    where a request leaves them open."""
    tool_parser: str = ""
    """Name of the parser for the form in which the model writes tool calls, for instance ``hermes``."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters, by the names under which clients ask for them, as for models of their own."""
    notes: tuple[str, ...] = ()
    """What an operator should know, for instance why requests run one at a time."""


class EngineLoad(Struct, frozen=True):
    """How busy an engine is right now."""

    running: int = 0
    waiting: int = 0
    kv_used_fraction: float = 0.0


@runtime_checkable
class Engine(Protocol):
    """One loaded model that generates.

    ``async with engine:`` loads and unloads; `info` is valid inside. Capabilities may add methods: `Embeds`,
    `Tokenizes`, `Renders`.
    """

    @property
    def info(self) -> EngineInfo: ...

    @property
    def fatal_error(self) -> BaseException | None:
        """What ended the engine for good; None while it is well.

        The worker looks at it several times a second, and goes out of service once it is set.
        """
        ...

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc_info: object) -> None: ...

    def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """The answer, chunk by chunk.

        Raises `ServeError`: `InvalidRequest` kinds before the first chunk, `EngineError` kinds at any
        time. ``aclose()`` aborts, and returns when nothing is held for the request any more.
        """
        ...

    def current_load(self) -> EngineLoad:
        """Cheap, without waiting: it may be read for every request."""
        ...


@runtime_checkable
class Embeds(Protocol):
    """What `Capability.EMBED` adds to an engine."""

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Vectors of all inputs. Raises `ServeError`; being cancelled is how a caller gives up."""
        ...


@runtime_checkable
class Tokenizes(Protocol):
    """What `Capability.TOKENIZE` adds to an engine."""

    async def tokenize(self, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]: ...
    async def detokenize(self, token_ids: tuple[int, ...]) -> str: ...


@runtime_checkable
class Renders(Protocol):
    """What `Capability.RENDER` adds to an engine."""

    async def render(self, prompt: ChatPrompt) -> str:
        """The text that the model's chat template makes of a conversation."""
        ...


class Sink(Protocol):
    """Where a `PushEngine` puts an answer. Called on the event loop's thread; never waits, never raises."""

    def push(self, chunk: Chunk) -> None:
        """One chunk; none comes after the one that carries `finish_reason`, or after `Handle.abort`."""

    def end(self, error: Exception | None) -> None:
        """Called exactly once, last: the engine holds nothing for the request any more.

        None after the last chunk, or after an abort; otherwise what went wrong.
        """


class Handle(Protocol):
    """A request under way."""

    def abort(self) -> None:
        """Stop generating. Idempotent, and does nothing after the end. Called on the event loop's thread."""


@runtime_checkable
class PushEngine(Protocol):
    """An `Engine` that steps a batch and serves every stream of it in one call per step."""

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        """Begin an answer; returns at once. Everything that can go wrong arrives at `sink.end`."""
        ...
