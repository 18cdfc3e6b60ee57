"""From the contract's requests to the bodies of OpenAI's API.

Pure functions; what cannot be said is refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from fastchat_backend_openai.dialects import Dialect, Structured
from fastchat_backend_openai.failures import UncountedOverflow
from fastchat_serve import (
    ChatPrompt,
    Choice,
    Constraint,
    EmbedRequest,
    GenerateRequest,
    Grammar,
    JsonObject,
    JsonSchema,
    Message,
    Regex,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    ToolSpec,
    Unsupported,
    constraint_param,
)

__all__ = ["chat_body", "check_room", "completion_body", "embedding_body", "messages_of", "tools_of"]

_MOST_ALTERNATIVES = 20
"""OpenAI's limit, and most servers'."""
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def chat_body(
    request: GenerateRequest,
    prompt: ChatPrompt,
    *,
    dialect: Dialect,
    template_options: Collection[str] = (),
    max_tokens_field: str = "max_tokens",
    send_seed: bool = True,
) -> dict[str, Any]:
    """The body of ``/chat/completions``, without a model's name and what concerns the stream.

    Args:
        template_options: Those that a request may set.

    Raises:
        Unsupported: Something has no words in `dialect`.
    """
    body: dict[str, Any] = {"messages": messages_of(prompt.messages)}
    if prompt.tools:
        body["tools"] = tools_of(prompt.tools)
        if prompt.tool_choice is not None:
            body["tool_choice"] = _tool_choice(prompt.tool_choice)
    if prompt.continue_final:
        if dialect.continues == "no":
            raise Unsupported("The upstream cannot continue a message.", param="continue_final_message")
        if dialect.continues == "field":
            body |= {"continue_final_message": True, "add_generation_prompt": False}
    if prompt.template_options:
        if not dialect.template_options or not set(prompt.template_options) <= set(template_options):
            raise Unsupported("These variables cannot be set for this model.", param="chat_template_kwargs")
        body["chat_template_kwargs"] = prompt.template_options
    body |= _sampling(request.sampling, dialect, max_tokens_field, send_seed=send_seed)
    if request.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": _alternatives(request.logprobs, dialect)}
    if request.constraint is not None:
        body |= _in_chat(request.constraint, dialect.structured)
    return body


def completion_body(
    request: GenerateRequest, prompt: TextPrompt | TokenPrompt, *, dialect: Dialect, send_seed: bool = True
) -> dict[str, Any]:
    """The same for ``/completions``."""
    body: dict[str, Any] = {"prompt": prompt.text if isinstance(prompt, TextPrompt) else prompt.token_ids}
    body |= _sampling(request.sampling, dialect, "max_tokens", send_seed=send_seed)
    if request.logprobs is not None:
        body["logprobs"] = request.logprobs
    if request.constraint is not None:
        body |= _in_completions(request.constraint, dialect.structured)
    return body


def check_room(request: GenerateRequest, context_length: int | None) -> None:
    """Refuse what cannot fit whatever the prompt: some servers would quietly make the answer shorter.

    Args:
        context_length: None if it is not known.

    Raises:
        ContextOverflow: `max_tokens` leaves no room for a prompt.
    """
    wanted = request.sampling.max_tokens
    if wanted is not None and context_length is not None and wanted >= context_length:
        text = f"This model's maximum context length is {context_length} tokens; {wanted} for the answer leave no room."
        raise UncountedOverflow(text, param="max_tokens")


def embedding_body(request: EmbedRequest, *, dialect: Dialect) -> dict[str, Any]:
    """The body of ``/embeddings``, without a model's name."""
    texts = [item.text for item in request.inputs if isinstance(item, TextPrompt)]
    tokens = [item.token_ids for item in request.inputs if isinstance(item, TokenPrompt)]
    if texts and tokens:
        raise Unsupported("Texts and token ids cannot be mixed for this model.", param="input")
    body: dict[str, Any] = {"input": texts or tokens, "encoding_format": "base64"}
    if request.truncate:
        if dialect.truncates is None:
            raise Unsupported("Inputs cannot be truncated for this model.", param="truncate")
        name, value = dialect.truncates
        body[name] = value
    return body


def messages_of(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """A conversation, as OpenAI writes it."""
    return [_message(message) for message in messages]


def tools_of(tools: tuple[ToolSpec, ...]) -> list[dict[str, Any]]:
    """Tools, as OpenAI writes them."""
    return [{"type": "function", "function": _given(tool, ("name", "description", "parameters"))} for tool in tools]


def _message(message: Message) -> dict[str, Any]:
    written: dict[str, Any] = {"role": message.role, "content": message.content}
    if isinstance(message.content, tuple):
        written["content"] = [{"type": "text", "text": part.text} for part in message.content]
    written |= _given(message, ("name", "tool_call_id"))
    if message.tool_calls:
        written["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return written


def _given(values: object, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(values, name)) is not None}


def _tool_choice(choice: str) -> str | dict[str, Any]:
    return {"type": "function", "function": {"name": choice}} if choice else "required"


def _sampling(params: SamplingParams, dialect: Dialect, max_tokens_field: str, *, send_seed: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"temperature": params.temperature, "top_p": params.top_p}
    for name, theirs in dialect.sampling.items():
        body[theirs] = getattr(params, name)
    if "top_k" in dialect.sampling:
        body["top_k"] = params.top_k or dialect.top_k_off
    if params.max_tokens is not None:
        body[max_tokens_field] = params.max_tokens
    if params.stop:
        body["stop"] = params.stop
    if params.presence_penalty:
        body["presence_penalty"] = params.presence_penalty
    if params.frequency_penalty:
        body["frequency_penalty"] = params.frequency_penalty
    if params.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
    if send_seed:
        body["seed"] = _signed(params.seed) if dialect.wide_seed else params.seed & 0x7FFF_FFFF
    return body


def _alternatives(wanted: int, dialect: Dialect) -> int:
    """How many to ask for, so that the most likely ones are among them."""
    return wanted + 1 if dialect.drawn_counts and 0 < wanted < _MOST_ALTERNATIVES else wanted


def _signed(seed: int) -> int:
    """64 bits as a signed number, which is what JSON APIs take."""
    return seed - 2**64 if seed >= 2**63 else seed


def _in_chat(constraint: Constraint, structured: Structured) -> dict[str, Any]:
    match constraint:
        case JsonObject():
            return {"response_format": {"type": "json_object"}}
        case JsonSchema(schema=schema):
            named = {"name": "answer", "schema": schema, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": named}}
        case _:
            return _other_than_json(constraint, structured)


def _in_completions(constraint: Constraint, structured: Structured) -> dict[str, Any]:
    schema = constraint.schema if isinstance(constraint, JsonSchema) else _ANY_OBJECT
    if not isinstance(constraint, JsonSchema | JsonObject):
        return _other_than_json(constraint, structured)
    match structured:
        case "vllm":
            return {"structured_outputs": {"json": schema}}
        case "sglang":
            return {"json_schema": msgspec.json.encode(schema).decode()}
        case "llamacpp":
            return {"json_schema": schema}
        case "none":
            raise Unsupported(
                "For this model, answers can be constrained in chats only.", param=constraint_param(type(constraint))
            )


def _other_than_json(constraint: Constraint, structured: Structured) -> dict[str, Any]:
    match structured, constraint:
        case "vllm", Regex(pattern=pattern):
            return {"structured_outputs": {"regex": pattern}}
        case "vllm", Choice(options=options):
            return {"structured_outputs": {"choice": options}}
        case "vllm", Grammar(ebnf=ebnf):
            return {"structured_outputs": {"grammar": ebnf}}
        case "sglang", Regex(pattern=pattern):
            return {"regex": pattern}
        case "sglang", Grammar(ebnf=ebnf):
            return {"ebnf": ebnf}
        case "llamacpp", Grammar(ebnf=ebnf):
            return {"grammar": ebnf}
        case _:
            raise Unsupported("The upstream does not know this constraint.", param=constraint_param(type(constraint)))
