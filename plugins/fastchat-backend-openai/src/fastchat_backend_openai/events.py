"""What OpenAI's API sends, of which we read this much: lenient in what is there, strict in its types.

One type for the events of chats and of completions; with its fields optional, it also fits all servers that
add to the API or leave out of it.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

__all__ = [
    "Choice",
    "Delta",
    "EmbeddingItem",
    "EmbeddingReply",
    "Event",
    "FunctionPart",
    "Logprobs",
    "ModelCard",
    "ModelList",
    "TokenEntry",
    "ToolCallPart",
    "TopEntry",
    "UsageCounts",
]


class FunctionPart(Struct):
    name: str | None = None
    arguments: str | None = None


class ToolCallPart(Struct):
    """A piece of a tool call. Pieces of one call have one index; some servers have no index, and send whole calls."""

    index: int | None = None
    id: str | None = None
    function: FunctionPart | None = None


class Delta(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    """As DeepSeek and most others call it."""
    reasoning: str | None = None
    """As vLLM and Ollama call it."""
    tool_calls: list[ToolCallPart] | None = None


class TopEntry(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenEntry(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopEntry] | None = None


class Logprobs(Struct):
    """`content` in chats; the other lists, which are parallel, in completions."""

    content: list[TokenEntry] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class Choice(Struct):
    index: int = 0
    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    token_ids: list[int] | None = None
    """vLLM's, if asked for."""
    stop_reason: str | int | None = None
    """vLLM's: the stop string or stop token that ended the answer."""
    matched_stop: str | int | None = None
    """The same in SGLang's words; it names the end of a sequence as well."""


class PromptDetails(Struct):
    cached_tokens: int | None = None


class UsageCounts(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None


class Event(Struct):
    """One event of a stream."""

    choices: list[Choice] = []
    usage: UsageCounts | None = None
    error: Any = None


class EmbeddingItem(Struct):
    embedding: list[float] | str
    """Numbers, or base64 of little-endian float32."""
    index: int | None = None


class EmbeddingReply(Struct):
    data: list[EmbeddingItem]
    usage: UsageCounts | None = None


class ModelMeta(Struct):
    """llama.cpp's."""

    n_ctx: int | None = None
    n_ctx_train: int | None = None


class ModelCard(Struct):
    """One entry of the list of models. `owned_by` tells most servers from each other."""

    id: str
    owned_by: str | None = None
    max_model_len: int | None = None
    """vLLM's, SGLang's and ours."""
    context_length: int | None = None
    """OpenRouter's and Together's."""
    meta: ModelMeta | None = None


class ModelList(Struct):
    data: list[ModelCard] = []
