"""What engines can do, one word each. What a request needs of them is in `requirements.py`."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["FULL_SAMPLING", "Capability"]


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
