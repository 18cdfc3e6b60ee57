"""Prompts of text: the API of text-generation-inference."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from huggingface_hub import AsyncInferenceClient, TextGenerationStreamOutput

from fastchat_backend_openai.answers import FINISH_REASONS
from fastchat_serve import (
    Capability,
    Chunk,
    EngineError,
    FinishReason,
    GenerateRequest,
    TextPrompt,
    TokenLogprob,
    Usage,
)
from fastchat_serve.text import StopStrings

__all__ = ["TEXT_GENERATION", "read_text", "text_arguments"]

TEXT_GENERATION = frozenset({Capability.TOP_K, Capability.REPETITION_PENALTY, Capability.SEED, Capability.LOGPROBS})
"""Beyond what every engine can."""


def text_arguments(request: GenerateRequest, prompt: TextPrompt) -> dict[str, Any]:
    """What `AsyncInferenceClient.text_generation` is called with: what is off is left out, as TGI wants it."""
    sampling = request.sampling
    arguments: dict[str, Any] = {
        "prompt": prompt.text,
        "return_full_text": False,
        "do_sample": sampling.temperature > 0,
    }
    if sampling.temperature > 0:
        arguments |= {"temperature": sampling.temperature, "seed": sampling.seed & 0x7FFF_FFFF}
        if sampling.top_p < 1:
            arguments["top_p"] = sampling.top_p
        if sampling.top_k:
            arguments["top_k"] = sampling.top_k
    if sampling.max_tokens is not None:
        arguments["max_new_tokens"] = sampling.max_tokens
    if sampling.stop:
        arguments["stop"] = list(sampling.stop)
    if sampling.repetition_penalty != 1:
        arguments["repetition_penalty"] = sampling.repetition_penalty
    if request.logprobs:
        arguments["top_n_tokens"] = request.logprobs
    return arguments


async def read_text(
    call: AsyncInferenceClient, arguments: dict[str, Any], *, stop: tuple[str, ...], alternatives: int | None
) -> AsyncGenerator[Chunk, None]:
    """The answer, chunk by chunk. TGI leaves stop strings in; here they are cut off.

    Args:
        alternatives: As `GenerateRequest.logprobs`.
    """
    stops = StopStrings(stop)
    async for event in await call.text_generation(details=True, stream=True, **arguments):
        token, details = event.token, event.details
        text = "" if token.special else stops.feed(token.text)
        logprobs = None if alternatives is None else (_rated(event, alternatives),)
        if details is None:
            if text or logprobs:
                yield Chunk(text=text, logprobs=logprobs)
            continue
        if details.generated_tokens is None:
            break
        text += stops.flush()
        yield Chunk(
            text=text,
            logprobs=logprobs,
            finish_reason="stop" if stops.matched is not None else _finish_reason(details.finish_reason),
            stop_match=stops.matched,
            usage=Usage(details.input_length or 0, details.generated_tokens),
        )
        return
    raise EngineError("The upstream's answer was cut off.", code="upstream_cut_off")


def _rated(event: TextGenerationStreamOutput, alternatives: int) -> TokenLogprob:
    top = tuple(TokenLogprob(t.id, t.text, t.text.encode(), t.logprob) for t in (event.top_tokens or ())[:alternatives])
    return TokenLogprob(event.token.id, event.token.text, event.token.text.encode(), event.token.logprob, top)


def _finish_reason(reason: str) -> FinishReason:
    if reason not in FINISH_REASONS:
        raise EngineError("The upstream ended the answer, and says neither by a stop nor for its length.")
    return FINISH_REASONS[reason]
