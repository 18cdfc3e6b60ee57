"""What an engine is asked: prompts, how to draw tokens, and the two kinds of request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from fastchat_serve.constraints import Constraint

__all__ = [
    "ChatPrompt",
    "EmbedRequest",
    "GenerateRequest",
    "Message",
    "SamplingParams",
    "TextPart",
    "TextPrompt",
    "TokenPrompt",
    "ToolCall",
    "ToolSpec",
]


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


class Message(Struct, frozen=True, kw_only=True, gc=False):
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


class TextPrompt(Struct, frozen=True, tag="text", gc=False):
    """Text that the engine's tokenizer encodes, special tokens of the tokenizer included."""

    text: str


class TokenPrompt(Struct, frozen=True, tag="tokens", gc=False):
    """Token ids, used as they are."""

    token_ids: tuple[int, ...]


class ChatPrompt(Struct, frozen=True, tag="chat", gc=False):
    """A conversation that the engine renders with the model's chat template."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: str | None = None
    """None: the model decides. Empty: it must call a tool. Otherwise the name of the tool that it must call."""
    continue_final: bool = False
    """True: the last message is the beginning of the answer, to be continued."""
    template_options: Mapping[str, Any] | None = None
    """Extra variables for the template, already checked against the operator's allow-list."""


class SamplingParams(Struct, frozen=True, kw_only=True, gc=False):
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


class GenerateRequest(Struct, frozen=True, kw_only=True, gc=False):
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
    session: str = ""
    """What the client calls the conversation, if it does: a policy may send equal ones to one worker. It is nothing to
    engines."""


class EmbedRequest(Struct, frozen=True, kw_only=True):
    """Texts to embed, all or none."""

    id: str
    inputs: tuple[TextPrompt | TokenPrompt, ...]
    truncate: bool = False
    """False: an input over the context is refused. True: its tail is dropped."""
    timeout_s: float | None = None
    tenant: str = ""
    """As in `GenerateRequest`."""
