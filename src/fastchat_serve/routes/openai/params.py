"""From OpenAI's words to the contract's: what chat and completions share.

Pure functions. Whatever is known and cannot be done is refused by name; nothing is silently ignored.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TypeVar

from fastchat_serve.config import Limits
from fastchat_serve.engine import Choice, Constraint, Grammar, JsonObject, JsonSchema, Regex, SamplingParams
from fastchat_serve.errors import InvalidRequest, Unsupported
from fastchat_serve.policy import Policy
from fastchat_serve.protocol import openai as wire
from fastchat_serve.routes.exchange import Exchange, header

__all__ = ["choice_seed", "constraint", "policy", "sampling_params", "session", "stop_strings"]

Number = TypeVar("Number", int, float)

_SEED_BITS = 64
_SEED_MASK = (1 << _SEED_BITS) - 1
_SEED_STEP = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: seeds of neighbouring choices are far apart (Knuth, TAOCP 6.4)."""


def session(request: wire.Sampling, exchange: Exchange) -> str:
    """`GenerateRequest.session`: the header ``x-session-id``, else OpenAI's ``prompt_cache_key``, else ``user``."""
    named = header(exchange.headers, b"x-session-id")
    return named.decode("latin-1") if named else request.prompt_cache_key or request.user or ""


def policy(allowed: Mapping[str, Policy], exchange: Exchange) -> Policy | None:
    """The one that the header ``x-dispatch-policy`` names; None if it does not, or if requests may not.

    Raises:
        InvalidRequest: There is none of that name.
    """
    name = header(exchange.headers, b"x-dispatch-policy").decode("latin-1") if allowed else ""
    if not name:
        return None
    if name not in allowed:
        raise InvalidRequest(f"There is no policy {name[:100]!r} here; known are: {', '.join(sorted(allowed))}.")
    return allowed[name]


def sampling_params(
    request: wire.Sampling, limits: Limits, max_tokens: int | None, advised: SamplingParams
) -> SamplingParams:
    """How to draw the tokens of `request`; a seed is given to one that has none.

    Args:
        advised: What the model's makers advise, for what the request leaves open.

    Raises:
        InvalidRequest: A limit is passed, or fields contradict each other.
    """
    n = request.n or 1
    if n > limits.max_n:
        raise InvalidRequest(f"n is {n}, but this server makes at most {limits.max_n} choices.", param="n")
    if request.best_of is not None and request.best_of != n:
        raise Unsupported(
            "best_of is not supported: every choice is returned. Leave it out, or ask for n.", param="best_of"
        )
    if request.logits_processors is not None:
        raise Unsupported("A request cannot bring code along.", param="logits_processors")
    if request.custom_logit_processor is not None:
        raise Unsupported("A request cannot bring code along.", param="custom_logit_processor")
    temperature = _either(request.temperature, advised.temperature)
    top_p = _either(request.top_p, advised.top_p)
    if top_p == 0:  # the smallest nucleus is the most likely token
        temperature, top_p = 0.0, 1.0
    if request.logit_bias and len(request.logit_bias) > limits.max_logit_bias:
        raise InvalidRequest(f"logit_bias has more than {limits.max_logit_bias} entries.", param="logit_bias")
    stop_token_ids = request.stop_token_ids or ()
    if len(stop_token_ids) > limits.max_stop:
        raise InvalidRequest(f"stop_token_ids has more than {limits.max_stop} entries.", param="stop_token_ids")
    min_tokens = request.min_tokens or 0
    if max_tokens is not None and min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens is {min_tokens}, more than the {max_tokens} of max_tokens.", param="min_tokens"
        )
    return SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=max(_either(request.top_k, advised.top_k), 0),
        min_p=_either(request.min_p, advised.min_p),
        repetition_penalty=_either(request.repetition_penalty, advised.repetition_penalty),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=request.logit_bias or None,
        seed=random.getrandbits(_SEED_BITS) if request.seed is None else request.seed & _SEED_MASK,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop=stop_strings(request.stop, limits),
        stop_token_ids=stop_token_ids,
        ignore_eos=request.ignore_eos or False,
    )


def _either(given: Number | None, advised: Number) -> Number:
    return advised if given is None else given


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of several choices: a function of the request's seed; choice 0 has it unchanged."""
    return (seed + choice * _SEED_STEP) & _SEED_MASK


def stop_strings(stop: str | tuple[str, ...] | None, limits: Limits) -> tuple[str, ...]:
    """`stop` as a tuple, within the limits."""
    strings = (stop,) if isinstance(stop, str) else stop or ()
    if len(strings) > limits.max_stop:
        raise InvalidRequest(f"stop has {len(strings)} strings; at most {limits.max_stop} are taken.", param="stop")
    for string in strings:
        if not string:
            raise InvalidRequest("A stop string must not be empty.", param="stop")
        if len(string) > limits.max_stop_chars:
            raise InvalidRequest(f"A stop string is longer than {limits.max_stop_chars} characters.", param="stop")
    return strings


def constraint(
    response_format: wire.TextFormat | wire.JsonObjectFormat | wire.JsonSchemaFormat | None,
    structured: wire.StructuredOutputs | None,
) -> Constraint | None:
    """The one normal form of OpenAI's `response_format` and vLLM's `structured_outputs`."""
    found: list[Constraint] = []
    match response_format:
        case wire.JsonObjectFormat():
            found.append(JsonObject())
        case wire.JsonSchemaFormat(json_schema=named):
            if named.schema is None:
                raise InvalidRequest("json_schema needs a schema.", param="response_format.json_schema.schema")
            found.append(JsonSchema(named.schema))
        case _:
            pass
    if structured is not None:
        if structured.json is not None:
            found.append(JsonSchema(structured.json))
        if structured.regex is not None:
            found.append(Regex(structured.regex))
        if structured.grammar is not None:
            found.append(Grammar(structured.grammar))
        if structured.choice is not None:
            if not structured.choice or not all(structured.choice):
                raise InvalidRequest("choice needs options, none of them empty.", param="structured_outputs.choice")
            found.append(Choice(structured.choice))
    if len(found) > 1:
        raise InvalidRequest("Only one of response_format and structured_outputs can hold.", param="structured_outputs")
    return found[0] if found else None
