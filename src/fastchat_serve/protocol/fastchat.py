"""Wire types of FastChat's processes, 0.2.36 and later: controller, worker, and ``/api/v1/…``.

Bodies are JSON. A worker's stream is one JSON message after the other, each with a NUL byte behind it, and each with
the whole text so far. What peers send is read leniently: some workers leave fields out or send ``null`` for them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

__all__ = [
    "NETWORK_ERROR",
    "Address",
    "ApiChatRequest",
    "ContextLength",
    "Conversation",
    "ConversationReply",
    "CountReply",
    "CountRequest",
    "EmbedParams",
    "EmbedReply",
    "ErrorCode",
    "Failure",
    "GenerateParams",
    "HeartBeat",
    "HeartBeatReply",
    "LegacyError",
    "Logprobs",
    "Message",
    "ModelNames",
    "ModelQuery",
    "RegisterWorker",
    "TokenCheck",
    "TokenCheckReply",
    "TokenCheckRequest",
    "TokenCheckResult",
    "Usage",
    "WorkerStatus",
]

NETWORK_ERROR = "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**"
"""What users of FastChat see of any failure, and what its clients look for."""

ModelName = Annotated[str, Meta(min_length=1, max_length=512)]
Names = Annotated[tuple[ModelName, ...], Meta(max_length=256)]
Count = Annotated[int, Meta(ge=0, le=2**53)]


class ErrorCode(IntEnum):
    """FastChat's numbers of errors, those that are ever sent."""

    NONE = 0
    VALIDATION_TYPE_ERROR = 40001
    INVALID_AUTH_KEY = 40101
    INVALID_MODEL = 40301
    PARAM_OUT_OF_RANGE = 40302
    CONTEXT_OVERFLOW = 40303
    ENGINE_OVERLOADED = 42903
    INTERNAL_ERROR = 50001
    OUT_OF_MEMORY = 50002
    NO_WORKER = 50005
    WORKER_TIMEOUT = 50006


# --------------------------------------------------------------------------------------- controller


class WorkerStatus(Struct, frozen=True):
    """What a worker says of itself, and a controller of all its workers together."""

    model_names: Names
    speed: Annotated[float, Meta(ge=0, le=1_000_000)] = 1.0
    queue_length: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0


class RegisterWorker(Struct, frozen=True):
    """Body of ``POST /register_worker``. `worker_name` is the worker's address."""

    worker_name: str
    check_heart_beat: bool = True
    worker_status: WorkerStatus | None = None
    multimodal: bool = False


class HeartBeat(Struct, frozen=True):
    """Body of ``POST /receive_heart_beat``."""

    worker_name: str
    queue_length: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0


class HeartBeatReply(Struct, frozen=True):
    """`exist` false: the worker is to register again."""

    exist: bool


class ModelQuery(Struct, frozen=True):
    """Body of requests about one model. Workers that have one model only are asked without its name."""

    model: str | None = None


class ModelNames(Struct, frozen=True):
    models: tuple[str, ...]


class Address(Struct, frozen=True):
    """Empty: nobody serves the model."""

    address: str


# ------------------------------------------------------------------------------------------- worker


class GenerateParams(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Body of ``POST /worker_generate_stream`` and ``/worker_generate``. ``null`` means: not given.

    FastChat's own workers fail on ``null``, and lose a slot for good by it: what is not given is not sent.
    """

    prompt: str
    model: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    max_new_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=1_000)] | bool | None = None
    echo: bool | None = None
    stop: str | tuple[str, ...] | None = None
    stop_token_ids: tuple[Annotated[int, Meta(ge=0, le=2**31 - 1)], ...] | None = None
    images: tuple[Any, ...] | None = None
    use_beam_search: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None


class Usage(Struct, frozen=True):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count


class Logprobs(Struct, frozen=True):
    """One entry per token so far."""

    text_offset: tuple[int, ...]
    tokens: tuple[str, ...]
    token_logprobs: tuple[float | None, ...]
    top_logprobs: tuple[dict[str, float], ...]


class Message(Struct, frozen=True):
    """One message of a worker's stream. `text` is all text so far, or says what went wrong."""

    text: str
    error_code: int = 0
    usage: dict[str, Any] | None = None
    """Empty or missing with some workers."""
    finish_reason: str | None = None


class Failure(Struct, frozen=True):
    """The message that ends a stream which failed; also the whole reply to other requests to a worker."""

    text: str
    error_code: int


class Conversation(Struct, frozen=True, kw_only=True):
    """A conversation template, with examples in `messages`.

    `sep_style` is a number that means different things to 0.2.36 and to what came after it, which also sends
    `max_image_size_mb`.
    """

    name: str = ""
    system_template: str = "{system_message}"
    system_message: str = ""
    roles: Annotated[tuple[str, ...], Meta(min_length=2)]
    messages: tuple[tuple[str, str | None], ...] = ()
    offset: int = 0
    sep_style: int
    sep: str | None = None
    sep2: str | None = None
    stop_str: str | tuple[str, ...] | None = None
    stop_token_ids: tuple[int, ...] | None = None
    max_image_size_mb: float | UnsetType | None = UNSET


class ConversationReply(Struct, frozen=True):
    conv: Conversation


class CountRequest(Struct, frozen=True):
    prompt: str
    model: str | None = None


class CountReply(Struct, frozen=True):
    count: Count
    error_code: int = 0


class ContextLength(Struct, frozen=True):
    context_length: Annotated[int, Meta(ge=1, le=2**53)]


class EmbedParams(Struct, frozen=True):
    input: str | tuple[str, ...]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None


class EmbedReply(Struct, frozen=True):
    """Vectors as numbers, or as base64 of their float32 values."""

    embedding: tuple[tuple[float, ...] | str, ...]
    token_num: Count


# ------------------------------------------------------------------------------------------ /api/v1


class LegacyError(Struct, frozen=True):
    """The body of every refusal of FastChat's API server, with status 400."""

    message: str
    code: int
    object: Literal["error"] = "error"


class ApiChatRequest(Struct, frozen=True):
    """What ``POST /api/v1/chat/completions`` adds to OpenAI's: a prompt in place of messages."""

    messages: Any


class TokenCheck(Struct, frozen=True):
    model: str
    prompt: str
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)]


class TokenCheckRequest(Struct, frozen=True):
    """Body of ``POST /api/v1/token_check``."""

    prompts: Annotated[tuple[TokenCheck, ...], Meta(max_length=2048)]


class TokenCheckResult(Struct, frozen=True, rename="camel"):
    fits: bool
    token_count: int
    context_length: int


class TokenCheckReply(Struct, frozen=True):
    prompts: tuple[TokenCheckResult, ...]
