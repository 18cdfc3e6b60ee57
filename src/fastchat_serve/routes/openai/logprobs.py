"""Log-probabilities in OpenAI's two shapes: chat's list of tokens, and the legacy parallel lists."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastchat_serve.engine import PromptEcho, TokenLogprob
from fastchat_serve.protocol import openai as wire

__all__ = ["chat_logprobs", "completion_logprobs"]

_IMPOSSIBLE = -9999.0
"""What OpenAI sends for probability 0, since JSON has no infinity."""


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> wire.ChatLogprobs:
    """For ``choices[].logprobs`` of a chat completion."""
    return wire.ChatLogprobs(
        tuple(
            wire.ChatTokenLogprob(
                token.text,
                _finite(token.logprob),
                tuple(token.data),
                tuple(wire.ChatTopLogprob(top.text, _finite(top.logprob), tuple(top.data)) for top in token.top),
            )
            for token in tokens
        )
    )


def completion_logprobs(
    prompt: PromptEcho | None, tokens: Sequence[TokenLogprob], offset: int = 0
) -> wire.CompletionLogprobs:
    """For ``choices[].logprobs`` of a completion, the echoed prompt's tokens first.

    Args:
        offset: Characters of the choice before the first of these tokens.
    """
    every = [*(prompt.logprobs or () if prompt is not None else ()), *tokens]
    offsets = []
    for token in every:
        offsets.append(offset)
        offset += len(token.text)
    return wire.CompletionLogprobs(
        text_offset=tuple(offsets),
        token_logprobs=tuple(None if token.logprob is None else _finite(token.logprob) for token in every),
        tokens=tuple(token.text for token in every),
        top_logprobs=tuple(
            None if token.logprob is None else {top.text: _finite(top.logprob) for top in token.top} for token in every
        ),
    )


def _finite(logprob: float | None) -> float:
    return logprob if logprob is not None and math.isfinite(logprob) else _IMPOSSIBLE
