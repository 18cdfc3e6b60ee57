"""What every engine promises, whatever library sits behind it: the contract, version 1.

An engine turns one `GenerateRequest` into a stream of `Chunk`s. It knows nothing of HTTP, OpenAI
or other workers. Chunks carry *new* text only; the last one carries `finish_reason` and `usage`.
Closing the stream early is how a caller aborts, so an engine releases the request in ``finally``.

The stream has two forms. `Engine.generate_stream` is the contract: an async generator. An engine
that steps a whole batch at once may also be a `PushEngine` and put chunks straight into sinks,
which spares a task switch per token. `push.py` turns either form into the other.

Internal types, not wire types: `protocol/` has those.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal, Protocol, Self, runtime_checkable

from msgspec import Struct

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
    "missing_methods",
    "required_capabilities",
]

CONTRACT = 1
"""The version that this module describes. A plugin states the one it was written for."""

FinishReason = Literal["stop", "length"]
"""``stop``: a stop token or stop string; ``length``: `max_tokens` or the context was used up."""


class Capability(StrEnum):
    """What an engine declares. A request that needs one which is missing is refused, never trimmed."""

    GENERATE = "generate"  # answers prompts of at least one of the next three kinds
    TEXT_PROMPT = "text_prompt"
    TOKEN_PROMPT = "token_prompt"
    CHAT = "chat"  # `ChatPrompt`s: the model has a chat template, or is behind an API that takes messages
    TOOLS = "tools"  # with tool specifications and tool results
    TOOL_CALLS = "tool_calls"  # reports calls in `Chunk.tool_calls`, rather than in the text for a parser to find
    TOOL_CHOICE = "tool_choice"  # `ChatPrompt.tool_choice`
    RENDER = "render"  # an `Engine` that `Renders`
    EMBED = "embed"  # an `Engine` that `Embeds`
    TOKENIZE = "tokenize"  # an `Engine` that `Tokenizes`
    TOKEN_IDS = "token_ids"  # chunks carry the ids of all drawn tokens
    ECHO = "echo"
    LOGPROBS = "logprobs"
    PROMPT_LOGPROBS = "prompt_logprobs"
    TOP_K = "top_k"
    MIN_P = "min_p"
    PENALTIES = "penalties"  # `presence_penalty` and `frequency_penalty`
    REPETITION_PENALTY = "repetition_penalty"
    LOGIT_BIAS = "logit_bias"
    MIN_TOKENS = "min_tokens"
    STOP_TOKEN_IDS = "stop_token_ids"
    IGNORE_EOS = "ignore_eos"
    SEED = "seed"  # equal requests with equal seeds have equal answers
    RESUME_GREEDY = "resume_greedy"  # `resume_token_ids` at temperature 0
    RESUME_SAMPLED = "resume_sampled"  # and with sampling: draws are a pure function of (seed, position)
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"
    CHOICE = "choice"
    ADAPTERS = "adapters"  # those of `EngineInfo.adapters`


FULL_SAMPLING = frozenset(
    {
        Capability.TOP_K,
        Capability.MIN_P,
        Capability.PENALTIES,
        Capability.REPETITION_PENALTY,
        Capability.LOGIT_BIAS,
        Capability.MIN_TOKENS,
        Capability.STOP_TOKEN_IDS,
        Capability.IGNORE_EOS,
    }
)
"""What an engine with a sampler of its own declares: all of `SamplingParams`. Without any of them an engine still
honours `temperature`, `top_p`, `max_tokens` and `stop`."""


# ---------------------------------------------------------------------------------------- prompts


class TextPart(Struct, frozen=True, tag="text"):
    """One text part of a message's content."""

    text: str


class ToolCall(Struct, frozen=True):
    """A call the assistant makes, or made earlier in the conversation. `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class ToolSpec(Struct, frozen=True):
    """A tool the model may call. `parameters` is a JSON Schema."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None


class Message(Struct, frozen=True, kw_only=True):
    """One turn. `content` None: an assistant turn that only calls tools."""

    role: str
    content: str | tuple[TextPart, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The content as one string; parts are joined by a newline."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "\n".join(part.text for part in self.content)


class TextPrompt(Struct, frozen=True, tag="text"):
    """Text that the engine's tokenizer encodes, special tokens of the tokenizer included."""

    text: str


class TokenPrompt(Struct, frozen=True, tag="tokens"):
    """Token ids, used as they are."""

    token_ids: tuple[int, ...]


class ChatPrompt(Struct, frozen=True, tag="chat"):
    """A conversation that the engine renders with the model's chat template."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: str | None = None
    """None: the model decides. Empty: it must call a tool. Otherwise the name of the tool that it must call."""
    continue_final: bool = False
    """True: the last message is the beginning of the answer, to be continued."""
    template_options: Mapping[str, Any] | None = None
    """Extra variables for the template, already checked against the operator's allow-list."""


# -------------------------------------------------------------------------------------- constraints


class JsonObject(Struct, frozen=True, tag="json_object"):
    """Any JSON object."""


class JsonSchema(Struct, frozen=True, tag="json_schema"):
    """JSON that is valid under `schema`."""

    schema: Mapping[str, Any]


class Regex(Struct, frozen=True, tag="regex"):
    """Text that `pattern` matches from its first to its last character."""

    pattern: str


class Grammar(Struct, frozen=True, tag="grammar"):
    """Text of a context-free grammar, in EBNF as GBNF and XGrammar write it."""

    ebnf: str


class Choice(Struct, frozen=True, tag="choice"):
    """Exactly one of `options`."""

    options: tuple[str, ...]


Constraint = JsonObject | JsonSchema | Regex | Grammar | Choice


# ------------------------------------------------------------------------------------------ request


class SamplingParams(Struct, frozen=True, kw_only=True):
    """How tokens are drawn. Every default means "off"; ranges are checked where requests come in.

    Filters apply in this order, as in vLLM: `logit_bias` and penalties, `min_tokens` and the
    constraint's mask, `temperature`, `top_k`, `top_p`, `min_p`.
    """

    temperature: float = 1.0
    """0 is greedy: the most likely token, the lowest id in a tie."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Over prompt and answer (Keskar et al. 2019); 1.0 is off."""
    presence_penalty: float = 0.0
    """Over the answer only, as in OpenAI's API."""
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int = 0
    """64-bit. The draw for position *i* of the answer is a pure function of (seed, i)."""
    max_tokens: int | None = None
    """None: as many as the context holds. Counts `resume_token_ids`."""
    min_tokens: int = 0
    """No stop token is drawn before this many tokens."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these; the match is not part of the text."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


class GenerateRequest(Struct, frozen=True, kw_only=True):
    """One answer to generate. ``n`` answers are ``n`` requests."""

    id: str
    prompt: TextPrompt | TokenPrompt | ChatPrompt
    sampling: SamplingParams = SamplingParams()
    logprobs: int | None = None
    """Log-probabilities of drawn tokens, with this many alternatives; None: none."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens, in `Chunk.prompt`."""
    echo: bool = False
    """Report the prompt's text and ids in `Chunk.prompt` of the first chunk."""
    constraint: Constraint | None = None
    priority: int = 0
    """Lower is served earlier, as in vLLM."""
    timeout_s: float | None = None
    """Seconds from acceptance to the last token; the worker's own limits hold as well."""
    resume_token_ids: tuple[int, ...] = ()
    """Tokens of this answer that an earlier run already delivered. The stream goes on after them as if
    nothing had happened: their text is not sent again, and `usage` counts the whole answer."""
    adapter: str | None = None
    """One of the engine's `EngineInfo.adapters`."""
    tenant: str = ""
    """Who asks, as an opaque mark: equal for equal API keys, or for equal peers where there are no keys. Queues are
    fair between tenants, and what one of them sent must never be seen by another, not even by time (prefix caches)."""


class EmbedRequest(Struct, frozen=True, kw_only=True):
    """Texts to embed, all or none."""

    id: str
    inputs: tuple[TextPrompt | TokenPrompt, ...]
    truncate: bool = False
    """False: an input over the context is refused. True: its tail is dropped."""
    timeout_s: float | None = None
    tenant: str = ""
    """As in `GenerateRequest`."""


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


def required_capabilities(request: GenerateRequest) -> frozenset[Capability]:
    """What an engine must have declared to be given `request`."""
    prompt = request.prompt
    needed = {Capability.GENERATE, _PROMPT_CAPABILITY[type(prompt)]}
    if isinstance(prompt, ChatPrompt) and prompt.tools:
        needed.add(Capability.TOOLS)
        if prompt.tool_choice is not None:
            needed.add(Capability.TOOL_CHOICE)
    _add_sampling(request.sampling, needed)
    if request.echo:
        needed.add(Capability.ECHO)
    if request.logprobs is not None:
        needed.add(Capability.LOGPROBS)
    if request.prompt_logprobs is not None:
        needed.add(Capability.PROMPT_LOGPROBS)
    if request.resume_token_ids:
        needed.add(Capability.RESUME_SAMPLED if request.sampling.temperature > 0 else Capability.RESUME_GREEDY)
    if request.constraint is not None:
        needed.add(_CONSTRAINT_CAPABILITY[type(request.constraint)])
    if request.adapter is not None:
        needed.add(Capability.ADAPTERS)
    return frozenset(needed)


def missing_methods(engine: Engine) -> list[str]:
    """What `engine`, which is open, declares and does not have."""
    declared = engine.info.capabilities
    return [
        name
        for capability, names in _METHODS.items()
        if capability in declared
        for name in names
        if not callable(getattr(engine, name, None))
    ]


def _add_sampling(params: SamplingParams, needed: set[Capability]) -> None:
    if params.top_k:
        needed.add(Capability.TOP_K)
    if params.min_p:
        needed.add(Capability.MIN_P)
    if params.presence_penalty or params.frequency_penalty:
        needed.add(Capability.PENALTIES)
    if params.repetition_penalty != 1:
        needed.add(Capability.REPETITION_PENALTY)
    if params.logit_bias:
        needed.add(Capability.LOGIT_BIAS)
    if params.min_tokens:
        needed.add(Capability.MIN_TOKENS)
    if params.stop_token_ids:
        needed.add(Capability.STOP_TOKEN_IDS)
    if params.ignore_eos:
        needed.add(Capability.IGNORE_EOS)


_METHODS = MappingProxyType(
    {
        Capability.EMBED: ("embed",),
        Capability.TOKENIZE: ("tokenize", "detokenize"),
        Capability.RENDER: ("render",),
    }
)

_PROMPT_CAPABILITY = MappingProxyType(
    {
        TextPrompt: Capability.TEXT_PROMPT,
        TokenPrompt: Capability.TOKEN_PROMPT,
        ChatPrompt: Capability.CHAT,
    }
)

_CONSTRAINT_CAPABILITY = MappingProxyType(
    {
        JsonObject: Capability.JSON_OBJECT,
        JsonSchema: Capability.JSON_SCHEMA,
        Regex: Capability.REGEX,
        Grammar: Capability.GRAMMAR,
        Choice: Capability.CHOICE,
    }
)
