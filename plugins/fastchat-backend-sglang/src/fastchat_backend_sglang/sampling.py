"""How a request is put to SGLang: its ``sampling_params``."""

from __future__ import annotations

from typing import Any

from fastchat_backend_sglang.constraints import as_params
from fastchat_serve import GenerateRequest

__all__ = ["RESUMED", "sampling_params"]

RESUMED = "fastchat_resumed"
"""In ``custom_params``, for `scheduler.py`: how many tokens at the end of the prompt belong to the answer."""


def sampling_params(request: GenerateRequest, left: int, *, seeded: bool) -> dict[str, Any]:
    """For the `left` tokens that are still to be drawn. Stop strings are not SGLang's affair, but ours."""
    wanted = request.sampling
    resumed = len(request.resume_token_ids)
    params: dict[str, Any] = {
        "max_new_tokens": left,
        "min_new_tokens": min(max(wanted.min_tokens - resumed, 0), left),
        "temperature": wanted.temperature,
        "top_p": wanted.top_p,
        "top_k": wanted.top_k or -1,
        "min_p": wanted.min_p,
        "repetition_penalty": wanted.repetition_penalty,
        "presence_penalty": wanted.presence_penalty,
        "frequency_penalty": wanted.frequency_penalty,
        "stop_token_ids": list(wanted.stop_token_ids) or None,
        "ignore_eos": wanted.ignore_eos,
        "skip_special_tokens": False,
    }
    if wanted.top_p <= 0:  # the most likely token alone; SGLang wants it said otherwise
        params |= {"top_p": 1.0, "top_k": 1}
    if wanted.ignore_eos and not wanted.stop_token_ids:  # no token is a stop token, so none is to be held off
        params["min_new_tokens"] = 0
    if wanted.logit_bias:
        params["logit_bias"] = {str(token): bias for token, bias in wanted.logit_bias.items()}
    if seeded:
        params["sampling_seed"] = wanted.seed - 2**64 if wanted.seed >= 2**63 else wanted.seed
    if resumed:
        params["custom_params"] = {RESUMED: resumed}
    if request.constraint is not None:
        params |= as_params(request.constraint)
    return params
