"""What the engine can do with a model whose chat template has tools, and calls in the form of Hermes."""

from __future__ import annotations

from fastchat_serve import FULL_SAMPLING, Capability

__all__ = ["CAPABILITIES"]

CAPABILITIES = FULL_SAMPLING | {
    Capability.GENERATE,
    Capability.TEXT_PROMPT,
    Capability.TOKEN_PROMPT,
    Capability.CHAT,
    Capability.TOOLS,
    Capability.TOOL_CHOICE,
    Capability.RENDER,
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
