"""OpenAI's wire types, as its API reference describes them (https://platform.openai.com/docs/api-reference).

Requests are lenient: fields we do not know are ignored, ``null`` means "not given". What a field may
hold is strict: every number has a range here, so nothing wild reaches an engine. Extensions that
vLLM made common (`top_k`, `min_p`, `priority`, …) carry the same names. Replies list their fields in
OpenAI's order; a field that is `UNSET` is left out of the JSON.

Internal types live in `engine.py`; `routes/openai/` translates.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

__all__ = [
    "AssistantMessage",
    "ChatChoice",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatCompletionRequest",
    "ChatLogprobs",
    "ChatMessage",
    "ChatTokenLogprob",
    "ChatTopLogprob",
    "ChunkChoice",
    "Completion",
    "CompletionChoice",
    "CompletionLogprobs",
    "CompletionRequest",
    "Delta",
    "EmbeddingItem",
    "EmbeddingList",
    "EmbeddingRequest",
    "ErrorBody",
    "ErrorEnvelope",
    "FunctionCall",
    "ModelCard",
    "ModelList",
    "StreamOptions",
    "ToolCallMessage",
    "Usage",
]

# ------------------------------------------------------------------------------------------- errors


class ErrorBody(Struct, frozen=True):
    """`type` is the broad kind, `code` the precise one, `param` the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(Struct, frozen=True):
    """The body of every reply that is not 2xx, and the last event of a stream that failed."""

    error: ErrorBody


# ----------------------------------------------------------------------------------------- requests

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
NotNegative = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = None


class StructuredOutputs(Struct, frozen=True):
    """vLLM's extension: exactly one of these."""

    json: dict[str, Any] | None = None
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None


class Sampling(Struct, frozen=True, kw_only=True, gc=False):
    """The fields that chat and completions share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Positive | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stop: str | tuple[str, ...] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[TokenId, Bias] | None = None
    seed: Seed | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    # What vLLM and its clients added.
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    min_tokens: NotNegative | None = None
    stop_token_ids: tuple[TokenId, ...] | None = None
    ignore_eos: bool | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    structured_outputs: StructuredOutputs | None = None
    best_of: Positive | None = None
    # Names of code, or code itself, that other servers run; refused by name.
    logits_processors: Any = None
    custom_logit_processor: Any = None


class TextPart(Struct, frozen=True, tag="text"):
    text: str


class RefusalPart(Struct, frozen=True, tag="refusal"):
    refusal: str


class ImagePart(Struct, frozen=True, tag="image_url"):
    image_url: Any


class AudioPart(Struct, frozen=True, tag="input_audio"):
    input_audio: Any


class FilePart(Struct, frozen=True, tag="file"):
    file: Any


ContentPart = TextPart | RefusalPart | ImagePart | AudioPart | FilePart


class FunctionCall(Struct, frozen=True):
    name: str
    arguments: str


class ToolCallMessage(Struct, frozen=True):
    """A call in an assistant message."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ChatMessage(Struct, frozen=True, kw_only=True, gc=False):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | tuple[ContentPart, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCallMessage, ...] | None = None
    tool_call_id: str | None = None


class FunctionSpec(Struct, frozen=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct, frozen=True):
    function: FunctionSpec
    type: Literal["function"] = "function"


class NamedFunction(Struct, frozen=True):
    name: str


class NamedToolChoice(Struct, frozen=True):
    function: NamedFunction
    type: Literal["function"] = "function"


class TextFormat(Struct, frozen=True, tag="text"):
    pass


class JsonObjectFormat(Struct, frozen=True, tag="json_object"):
    pass


class NamedSchema(Struct, frozen=True):
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class JsonSchemaFormat(Struct, frozen=True, tag="json_schema"):
    json_schema: NamedSchema


class ChatCompletionRequest(Sampling, frozen=True, kw_only=True):
    """Body of ``POST /v1/chat/completions``. Fields we do not know are ignored."""

    messages: Annotated[tuple[ChatMessage, ...], Meta(min_length=1)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: NotNegative | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    modalities: tuple[str, ...] | None = None
    # vLLM's and FastChat's users send these.
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    chat_template: str | None = None
    # Deprecated by OpenAI before tools; refused by name rather than ignored.
    functions: Any = None
    function_call: Any = None
    # Only OpenAI can do this; refused likewise.
    web_search_options: Any = None


class CompletionRequest(Sampling, frozen=True, kw_only=True):
    """Body of ``POST /v1/completions``. A prompt is text or token ids; several make a batch."""

    prompt: str | tuple[str | TokenId | tuple[TokenId, ...], ...]
    max_tokens: NotNegative | None = None
    logprobs: NotNegative | None = None
    echo: bool | None = None
    suffix: str | None = None


class EmbeddingRequest(Struct, frozen=True, kw_only=True):
    """Body of ``POST /v1/embeddings``. `truncate` is ours: cut inputs that are too long."""

    model: str
    input: str | tuple[str | TokenId | tuple[TokenId, ...], ...]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None
    user: str | None = None
    truncate: bool | None = None


# ------------------------------------------------------------------------------------------ replies


class PromptTokensDetails(Struct, frozen=True):
    cached_tokens: int


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET


class EmbeddingUsage(Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class ChatTopLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: tuple[int, ...]


class ChatTokenLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: tuple[int, ...]
    top_logprobs: tuple[ChatTopLogprob, ...]


class ChatLogprobs(Struct, frozen=True):
    content: tuple[ChatTokenLogprob, ...]
    refusal: None = None


class AssistantMessage(Struct, frozen=True, kw_only=True, gc=False):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    """As DeepSeek, vLLM and SGLang write it; OpenAI's API has no word for it."""
    tool_calls: tuple[ToolCallMessage, ...] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True, gc=False):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: str | int | UnsetType = UNSET
    """vLLM's extension: the stop string or stop token that ended the choice, if one did."""


class ChatCompletion(Struct, frozen=True, tag_field="object", tag="chat.completion", gc=False):
    id: str
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: Usage
    system_fingerprint: str | None = None


class FunctionCallDelta(Struct, frozen=True):
    name: str
    arguments: str


class ToolCallDelta(Struct, frozen=True):
    index: int
    id: str
    function: FunctionCallDelta
    type: Literal["function"] = "function"


class Delta(Struct, frozen=True, omit_defaults=True, gc=False):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCallDelta, ...] | None = None


class ChunkChoice(Struct, frozen=True, gc=False):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType = UNSET


class ChatCompletionChunk(Struct, frozen=True, tag_field="object", tag="chat.completion.chunk", gc=False):
    """One event of a chat stream. `usage`: absent, or null until the last event, as the client asked."""

    id: str
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: Usage | UnsetType | None = UNSET


class CompletionLogprobs(Struct, frozen=True):
    """The legacy shape: parallel lists over tokens. `text_offset` counts characters."""

    text_offset: tuple[int, ...]
    token_logprobs: tuple[float | None, ...]
    tokens: tuple[str, ...]
    top_logprobs: tuple[dict[str, float] | None, ...]


class CompletionChoice(Struct, frozen=True, gc=False):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType = UNSET


class Completion(Struct, frozen=True, tag_field="object", tag="text_completion", gc=False):
    """A whole completion, and likewise one event of a stream of it."""

    id: str
    created: int
    model: str
    choices: tuple[CompletionChoice, ...]
    usage: Usage | UnsetType | None = UNSET


class EmbeddingItem(Struct, frozen=True, tag_field="object", tag="embedding"):
    """`embedding`: numbers, or base64 of little-endian float32."""

    index: int
    embedding: list[float] | str


class EmbeddingList(Struct, frozen=True, tag_field="object", tag="list"):
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


class ModelCard(Struct, frozen=True, tag_field="object", tag="model"):
    """One model. `max_model_len` is vLLM's name for the context length."""

    id: str
    created: int
    owned_by: str = "fastchat-serve"
    max_model_len: int | UnsetType = UNSET


class ModelList(Struct, frozen=True, tag_field="object", tag="list"):
    data: tuple[ModelCard, ...]
