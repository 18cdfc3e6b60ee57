"""Our parameters of a request in vLLM's form."""

from __future__ import annotations

from typing import Any

from fastchat_serve import GenerateRequest, InvalidRequest

__all__ = ["cache_salt", "is_replayed", "sampling_arguments"]

_LEAST_TOP_P = 1e-6
"""vLLM takes no 0, which means: the most likely token alone."""


def sampling_arguments(request: GenerateRequest, *, limit: int) -> dict[str, Any]:
    """The arguments of vLLM's ``SamplingParams``, but for the constraint. `limit`: tokens of the whole answer.

    Raises `InvalidRequest` for what vLLM cannot honour.
    """
    params = request.sampling
    before = 0 if is_replayed(request) else len(request.resume_token_ids)
    if request.constraint is not None:
        _check_constrained(request)
    return {
        "temperature": params.temperature,
        "top_p": max(params.top_p, _LEAST_TOP_P),
        "top_k": params.top_k,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "logit_bias": dict(params.logit_bias) if params.logit_bias else None,
        "seed": params.seed & (2**63 - 1),  # vLLM takes no more bits, and -1 for no seed at all
        "max_tokens": max(limit - before, 1),
        "min_tokens": max(min(params.min_tokens, limit) - before, 0),
        "stop_token_ids": list(params.stop_token_ids),
        "ignore_eos": params.ignore_eos,
        "logprobs": request.logprobs,
        "prompt_logprobs": None if request.resume_token_ids else request.prompt_logprobs,
        "detokenize": False,
    }


def is_replayed(request: GenerateRequest) -> bool:
    """Whether a resumed answer is drawn anew from its beginning.

    vLLM takes what was delivered for a part of the prompt. Where it matters that it is not, the same tokens are drawn
    once more, and not sent: it is greedy answers that are resumed, so they are the same.
    """
    params = request.sampling
    counts = request.constraint is not None or params.presence_penalty or params.frequency_penalty
    return bool(request.resume_token_ids and counts)


def cache_salt(tenant: str, adapter: str | None = None) -> str:
    """What vLLM's prefix cache keeps apart: nobody finds, or times, what another client's requests left there."""
    return f"{tenant}\n{adapter or ''}"


def _check_constrained(request: GenerateRequest) -> None:
    """A constraint ends with a stop token, so nothing may keep that from being drawn."""
    if request.sampling.ignore_eos:
        raise InvalidRequest("ignore_eos cannot go with a constraint: nothing would end it.", param="ignore_eos")
    if request.sampling.min_tokens:
        raise InvalidRequest("min_tokens cannot go with a constraint, which may end earlier.", param="min_tokens")
