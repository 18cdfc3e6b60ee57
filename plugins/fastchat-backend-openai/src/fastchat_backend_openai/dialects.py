"""Which extensions of OpenAI's API a kind of server understands, and under which names.

A dialect decides what an engine declares, and so what is refused before the upstream hears of it. What a sampling
parameter is called is also written here: those of a dialect are sent with every request, since many servers have
defaults of their own where a request is silent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal

from msgspec import Struct

from fastchat_backend_openai.options import Api, DialectName
from fastchat_serve import FULL_SAMPLING, Capability

__all__ = ["DIALECTS", "Dialect", "Structured", "capabilities_of", "dialect_of_owner"]

Structured = Literal["none", "vllm", "sglang", "llamacpp"]
"""How constraints are written that OpenAI's ``response_format`` has no words for."""

_C = Capability

_OPENAI = frozenset(
    {_C.TOOL_CHOICE, _C.PENALTIES, _C.LOGIT_BIAS, _C.LOGPROBS, _C.JSON_OBJECT, _C.JSON_SCHEMA, _C.TOKEN_PROMPT}
)
_NO_SAMPLING: Mapping[str, str] = MappingProxyType({})
_VLLM_SAMPLING = MappingProxyType(
    {name: name for name in ("top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos")}
)


class Dialect(Struct, frozen=True):
    """One kind of server.

    Attributes:
        can: Beyond chat with tools. `TOKEN_PROMPT` counts where there are completions.
        sampling: Fields of `SamplingParams` that only some servers know, and what this one calls them.
        top_k_off: What means "all tokens".
        apis: Which APIs every such server has.
        wide_seed: Seeds may have 64 bits; otherwise they are folded to 31.
        continues: How a chat's last message is continued: by a field, by itself, or not at all.
        template_options: ``chat_template_kwargs`` reach the template.
        token_ids: Ids of drawn tokens are told, if asked for.
        drawn_counts: In chats, the drawn token takes the place of an alternative.
        cache_salt: Prefixes are shared only between requests of one salt.
        truncates: The field and value with which embeddings drop the tails of long inputs.
    """

    can: frozenset[Capability]
    apis: tuple[Api, ...] = ("chat", "completions")
    sampling: Mapping[str, str] = _NO_SAMPLING
    top_k_off: int = -1
    structured: Structured = "none"
    wide_seed: bool = False
    continues: Literal["no", "field", "itself"] = "no"
    template_options: bool = False
    token_ids: bool = False
    drawn_counts: bool = False
    cache_salt: bool = False
    truncates: tuple[str, bool | int] | None = None


DIALECTS: Mapping[DialectName, Dialect] = MappingProxyType(
    {
        "openai": Dialect(_OPENAI, apis=("chat",)),
        "vllm": Dialect(
            _OPENAI | FULL_SAMPLING | {_C.SEED, _C.REGEX, _C.GRAMMAR, _C.CHOICE, _C.TOKEN_IDS},
            sampling=_VLLM_SAMPLING,
            structured="vllm",
            wide_seed=True,
            continues="field",
            template_options=True,
            token_ids=True,
            drawn_counts=True,
            cache_salt=True,
            truncates=("truncate_prompt_tokens", -1),
        ),
        "sglang": Dialect(
            _OPENAI | FULL_SAMPLING | {_C.REGEX, _C.GRAMMAR},
            sampling=_VLLM_SAMPLING,
            structured="sglang",
            continues="field",
            template_options=True,
        ),
        "llamacpp": Dialect(
            _OPENAI - {_C.TOOL_CHOICE}
            | {_C.TOP_K, _C.MIN_P, _C.REPETITION_PENALTY, _C.IGNORE_EOS, _C.SEED, _C.GRAMMAR},
            sampling=MappingProxyType(
                {
                    "top_k": "top_k",
                    "min_p": "min_p",
                    "repetition_penalty": "repeat_penalty",
                    "ignore_eos": "ignore_eos",
                }
            ),
            top_k_off=0,
            structured="llamacpp",
            continues="itself",
            template_options=True,
        ),
        "ollama": Dialect(frozenset({_C.PENALTIES, _C.JSON_OBJECT, _C.JSON_SCHEMA, _C.SEED}), continues="itself"),
        "lmstudio": Dialect(
            frozenset({_C.PENALTIES, _C.LOGIT_BIAS, _C.TOP_K, _C.REPETITION_PENALTY, _C.JSON_SCHEMA, _C.SEED}),
            sampling=MappingProxyType({"top_k": "top_k", "repetition_penalty": "repeat_penalty"}),
            top_k_off=0,
        ),
        "fastchat-serve": Dialect(
            _OPENAI | FULL_SAMPLING | {_C.SEED, _C.REGEX, _C.GRAMMAR, _C.CHOICE},
            sampling=_VLLM_SAMPLING,
            structured="vllm",
            wide_seed=True,
            continues="field",
            template_options=True,
            truncates=("truncate", True),
        ),
    }
)

_OWNERS = MappingProxyType(
    {
        "vllm": "vllm",
        "sglang": "sglang",
        "llamacpp": "llamacpp",
        "llama.cpp": "llamacpp",
        "library": "ollama",
        "organization_owner": "lmstudio",
        "organization-owner": "lmstudio",
        "fastchat-serve": "fastchat-serve",
    }
)


def dialect_of_owner(owner: str) -> DialectName:
    """The dialect that ``owned_by`` of a list of models gives away; OpenAI's own if it tells nothing."""
    return _OWNERS.get(owner, "openai")  # type: ignore[return-value]  # the values are names of dialects


def capabilities_of(dialect: Dialect, apis: Iterable[Api], lacks: Iterable[Capability]) -> frozenset[Capability]:
    """What an engine declares."""
    offered, can = set(apis), set[Capability]()
    if "chat" in offered:
        can |= {_C.CHAT, _C.TOOLS, _C.TOOL_CALLS}
    if "completions" in offered:
        can |= {_C.TEXT_PROMPT, *dialect.can & {_C.TOKEN_PROMPT}}
    if can:
        can |= {_C.GENERATE, *dialect.can - {_C.TOKEN_PROMPT}}
    if "chat" not in offered:
        can -= {_C.TOOL_CHOICE}
    if "embeddings" in offered:
        can |= {_C.EMBED}
    can -= set(lacks)
    if _C.TOOLS not in can:
        can -= {_C.TOOL_CALLS, _C.TOOL_CHOICE}
    return frozenset(can)
