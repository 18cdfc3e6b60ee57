"""What a chunk must be, whatever engine it comes from: the checks that types cannot make at run time."""

from __future__ import annotations

from collections.abc import Iterable

from fastchat_serve.engine import Chunk, TokenLogprob, Usage

__all__ = ["flaw"]


def flaw(chunk: object) -> str:
    """What is wrong with `chunk`, for the log and the client; empty if it can be used."""
    if not isinstance(chunk, Chunk):
        return f"a {type(chunk).__name__} for a chunk"
    if not isinstance(chunk.text, str):
        return f"text of type {type(chunk.text).__name__}"
    if chunk.logprobs is not None and not _are_log_probabilities(chunk.logprobs):
        return "a log-probability that is none"
    if chunk.finish_reason is None:
        return ""
    if chunk.finish_reason not in ("stop", "length"):
        return "a finish reason that is not known"
    if chunk.usage is not None and not _is_usage(chunk.usage):
        return "a usage that counts nothing"
    return ""


def _are_log_probabilities(tokens: Iterable[object]) -> bool:
    """Numbers up to 0, or minus infinity for what is impossible; a rounding error above 0 is none."""
    return all(
        isinstance(token, TokenLogprob)
        and isinstance(token.text, str)
        and isinstance(token.data, bytes)
        and (token.logprob is None or (isinstance(token.logprob, float | int) and token.logprob <= 1e-3))
        and _are_log_probabilities(token.top)
        for token in tokens
    )


def _is_usage(usage: object) -> bool:
    return isinstance(usage, Usage) and all(
        type(count) is int and count >= 0
        for count in (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
    )
