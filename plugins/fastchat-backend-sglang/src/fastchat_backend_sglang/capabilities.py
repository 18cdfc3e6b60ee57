"""What engines of this backend can do: at most, and with given options and model."""

from __future__ import annotations

from fastchat_backend_sglang.options import SglangOptions
from fastchat_serve import FULL_SAMPLING, Capability

__all__ = ["CAPABILITIES", "capabilities"]

_GENERATION = frozenset(
    {
        Capability.GENERATE,
        Capability.TEXT_PROMPT,
        Capability.TOKEN_PROMPT,
        Capability.TOKENIZE,
        Capability.TOKEN_IDS,
        Capability.ECHO,
        Capability.LOGPROBS,
        Capability.PROMPT_LOGPROBS,
        Capability.RESUME_GREEDY,
        *FULL_SAMPLING,
    }
)
_CHAT = frozenset({Capability.CHAT, Capability.RENDER})
_CONSTRAINTS = frozenset(
    {
        Capability.JSON_OBJECT,
        Capability.JSON_SCHEMA,
        Capability.REGEX,
        Capability.GRAMMAR,
        Capability.CHOICE,
    }
)
_EMBEDDING = frozenset({Capability.EMBED, Capability.TOKENIZE})

CAPABILITIES = (
    _GENERATION | _CHAT | _CONSTRAINTS | _EMBEDDING | {Capability.TOOLS, Capability.SEED, Capability.ADAPTERS}
)


def capabilities(options: SglangOptions, *, chat: bool, tools: bool, constraints: bool) -> frozenset[Capability]:
    """Of one engine: `chat` and `tools` are the chat template's affair, `constraints` those of the grammar backend."""
    if options.task == "embed":
        return _EMBEDDING
    can = set(_GENERATION)
    if chat:
        can |= _CHAT
    if tools:
        can.add(Capability.TOOLS)
    if constraints:
        can |= _CONSTRAINTS
    if options.adapters:
        can.add(Capability.ADAPTERS)
    if options.deterministic:
        can.add(Capability.SEED)
        can.remove(Capability.MIN_P)  # with a seed, SGLang's sampler has none
    return frozenset(can)
