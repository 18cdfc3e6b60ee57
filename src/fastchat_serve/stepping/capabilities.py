"""What an engine can do whose answers are made by `Preparation` and drawn by a sampler of its own."""

from __future__ import annotations

from fastchat_serve.engine import FULL_SAMPLING, Capability
from fastchat_serve.text import ChatTemplate

__all__ = ["decoder_capabilities"]

_DECODER = FULL_SAMPLING | {
    Capability.GENERATE,
    Capability.TEXT_PROMPT,
    Capability.TOKEN_PROMPT,
    Capability.TOKENIZE,
    Capability.TOKEN_IDS,
    Capability.ECHO,
    Capability.LOGPROBS,
    Capability.PROMPT_LOGPROBS,
    Capability.SEED,
    Capability.RESUME_GREEDY,
    Capability.RESUME_SAMPLED,
    Capability.JSON_OBJECT,
    Capability.JSON_SCHEMA,
    Capability.REGEX,
    Capability.GRAMMAR,
    Capability.CHOICE,
}


def decoder_capabilities(template: ChatTemplate | None) -> frozenset[Capability]:
    """Those of a decoder with this chat template."""
    if template is None:
        return _DECODER
    can = _DECODER | {Capability.CHAT, Capability.RENDER}
    if not template.supports_tools:
        return can
    if template.tool_parser != "hermes":  # the form in which `Constraints` demands a call
        return can | {Capability.TOOLS}
    return can | {Capability.TOOLS, Capability.TOOL_CHOICE}
