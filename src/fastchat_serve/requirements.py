"""What a request needs of an engine, and what an engine's capabilities need of it."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from fastchat_serve.capabilities import Capability
from fastchat_serve.constraints import Choice, Grammar, JsonObject, JsonSchema, Regex
from fastchat_serve.requests import ChatPrompt, GenerateRequest, SamplingParams, TextPrompt, TokenPrompt

if TYPE_CHECKING:
    from fastchat_serve.engine import Engine

__all__ = ["missing_methods", "required_capabilities"]


def required_capabilities(request: GenerateRequest) -> frozenset[Capability]:
    """What an engine must have declared to be given `request`."""
    prompt = request.prompt
    needed: set[Capability] = set()
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
    plain = _PLAIN[type(prompt)]
    return plain | needed if needed else plain  # nearly always the same object, which knows its hash


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

_PLAIN = MappingProxyType(
    {
        TextPrompt: frozenset({Capability.GENERATE, Capability.TEXT_PROMPT}),
        TokenPrompt: frozenset({Capability.GENERATE, Capability.TOKEN_PROMPT}),
        ChatPrompt: frozenset({Capability.GENERATE, Capability.CHAT}),
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
