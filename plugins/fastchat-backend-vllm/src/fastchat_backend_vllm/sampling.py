"""Our parameters of a request in vLLM's form."""

from __future__ import annotations

from typing import Any

from fastchat_serve import GenerateRequest, InvalidRequest, Unsupported

__all__ = ["cache_salt", "sampling_arguments"]

_LEAST_TOP_P = 1e-6
"""vLLM takes no 0, which means: the most likely token alone."""


def sampling_arguments(request: GenerateRequest, *, limit: int) -> dict[str, Any]:
    """The arguments of vLLM's ``SamplingParams``, but for the constraint. `limit`: tokens of the whole answer.

    Raises `InvalidRequest` for what vLLM cannot honour.
    """
    params, resumed = request.sampling, len(request.resume_token_ids)
    if resumed:
        _check_resumed(request)
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
        "max_tokens": max(limit - resumed, 1),
        "min_tokens": max(min(params.min_tokens, limit) - resumed, 0),
        "stop_token_ids": list(params.stop_token_ids),
        "ignore_eos": params.ignore_eos,
        "logprobs": request.logprobs,
        "prompt_logprobs": None if resumed else request.prompt_logprobs,
        "detokenize": False,
    }


def cache_salt(tenant: str, adapter: str | None = None) -> str:
    """What vLLM's prefix cache keeps apart: nobody finds, or times, what another client's requests left there."""
    return f"{tenant}\n{adapter or ''}"


def _check_resumed(request: GenerateRequest) -> None:
    """To vLLM, what was delivered before belongs to the prompt."""
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(request.sampling, name):
            raise Unsupported(f"vLLM cannot resume an answer with a {name}.", param=name)
    if request.constraint is not None:
        raise Unsupported("vLLM cannot resume an answer under a constraint.")


def _check_constrained(request: GenerateRequest) -> None:
    """A constraint ends with a stop token, so nothing may keep that from being drawn."""
    if request.sampling.ignore_eos:
        raise InvalidRequest("ignore_eos cannot go with a constraint: nothing would end it.", param="ignore_eos")
    if request.sampling.min_tokens:
        raise InvalidRequest("min_tokens cannot go with a constraint, which may end earlier.", param="min_tokens")
