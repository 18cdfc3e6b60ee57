"""One answer of a worker, as FastChat's processes read it: every message has the whole text so far."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from fastchat_serve.config import Limits
from fastchat_serve.controller.dispatcher import Dispatcher
from fastchat_serve.engine import (
    ChatPrompt,
    Chunk,
    GenerateRequest,
    Handle,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from fastchat_serve.errors import ContextOverflow, EngineError, ServeError, Unsupported
from fastchat_serve.fastchat.carried import prompt_from
from fastchat_serve.protocol import fastchat as wire
from fastchat_serve.routes.exchange import Exchange
from fastchat_serve.routes.fastchat.failures import failure
from fastchat_serve.routes.metrics import Observation
from fastchat_serve.routes.openai.params import stop_strings

__all__ = ["Generation", "generate_request"]

USUAL_MAX_TOKENS: Final = 256
_GREEDY_BELOW: Final = 1e-5
_SEED_BITS: Final = 64

_encode = msgspec.json.Encoder().encode


def generate_request(params: wire.GenerateParams, exchange: Exchange, limits: Limits) -> GenerateRequest:
    """What is asked, in the contract's words. Raises `InvalidRequest` kinds."""
    if params.images:
        raise Unsupported("Images are not supported.", param="images")
    if params.use_beam_search:
        raise Unsupported("Beam search is not supported.", param="use_beam_search")
    prompt = prompt_from(params.prompt)
    with_logprobs = params.logprobs is not None and params.logprobs is not False
    echo = params.echo is None or params.echo
    # Text that is to come back as it is need not go through an engine, which might not be able to say it.
    asks_for_echo = echo and (with_logprobs or isinstance(prompt, ChatPrompt))
    return GenerateRequest(
        id=f"fastchat-{exchange.unique_id}",
        prompt=prompt,
        sampling=_sampling(params, limits),
        logprobs=0 if with_logprobs else None,
        prompt_logprobs=0 if with_logprobs and echo else None,
        echo=asks_for_echo,
        tenant=exchange.tenant,
    )


def _sampling(params: wire.GenerateParams, limits: Limits) -> SamplingParams:
    temperature = 1.0 if params.temperature is None else params.temperature
    top_p = 1.0 if params.top_p is None else params.top_p
    if temperature < _GREEDY_BELOW or top_p < _GREEDY_BELOW:
        temperature, top_p = 0.0, 1.0
    return SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=max(params.top_k or 0, 0),
        repetition_penalty=max(params.repetition_penalty or 1.0, 1.0),
        presence_penalty=params.presence_penalty or 0.0,
        frequency_penalty=params.frequency_penalty or 0.0,
        seed=random.getrandbits(_SEED_BITS),
        max_tokens=USUAL_MAX_TOKENS if params.max_new_tokens is None else params.max_new_tokens,
        stop=stop_strings(params.stop, limits),
        stop_token_ids=params.stop_token_ids or (),
    )


class Generation:
    """The sink of an answer, and its reply.

    Args:
        prefix: Text to put before the answer.
        stream: A message for every chunk; otherwise the last message only.
    """

    def __init__(
        self,
        exchange: Exchange,
        observation: Observation,
        dispatcher: Dispatcher,
        model: str,
        request: GenerateRequest,
        *,
        prefix: str,
        stream: bool,
    ) -> None:
        self._exchange, self._observation = exchange, observation
        self._dispatcher, self._model, self._request = dispatcher, model, request
        self._stream = stream
        self._text = prefix
        self._tokens: list[TokenLogprob] = []
        self._handle: Handle | None = None
        self._begun = self._done = False

    def start(self) -> None:
        """Ask a worker. What it refuses is the reply."""
        try:
            self._handle = self._dispatcher.start(self._model, self._request, self)
        except ServeError as error:
            self._fail(error)

    def close(self) -> None:
        """The reply is complete, or nobody wants it any more."""
        if not self._done:
            self._done = True
            self._observation.finish(None, left=True)
        if self._handle is not None:
            self._handle.abort()
            self._handle = None

    # ---------------------------------------------------------------------------------- the sink's side

    def push(self, chunk: Chunk) -> None:
        if self._done:
            return
        if not self._begun:
            self._begun = True
            self._observation.first_token()
            if self._stream:
                self._exchange.begin(200, ())
        if chunk.prompt is not None:
            self._text += chunk.prompt.text
            self._tokens.extend(chunk.prompt.logprobs or ())
        self._text += chunk.text
        self._tokens.extend(chunk.logprobs or ())
        if self._stream and (chunk.text or chunk.prompt is not None):
            self._write(self._message())
        if chunk.finish_reason is not None:
            self._done = True
            usage = chunk.usage or Usage(0, 0)
            self._observation.finish(usage)
            # Once more the same text: FastChat's API server takes the end from a message that adds none.
            self._write(self._message(chunk.finish_reason, usage), last=True)

    def end(self, error: Exception | None) -> None:
        if error is None or self._done:
            return
        too_long = isinstance(error, ServeError) and error.code == ContextOverflow.code
        if too_long and not self._begun and self._request.sampling.max_tokens is not None:
            # FastChat's front ends ask for more than there is room for, and mean: as many as there is.
            sampling = replace(self._request.sampling, max_tokens=None)
            self._request = replace(self._request, sampling=sampling)
            asyncio.get_running_loop().call_soon(self._start_again)
            return
        self._fail(error if isinstance(error, ServeError) else EngineError("The engine failed."))

    def _start_again(self) -> None:
        if not self._done:
            self.start()

    def _fail(self, error: ServeError) -> None:
        self._done = True
        self._observation.finish(None, error)
        if self._stream and not self._begun:
            self._exchange.begin(200, ())
        self._write(msgspec.to_builtins(failure(error)), last=True)

    def _message(self, finish_reason: str | None = None, usage: Usage | None = None) -> dict[str, Any]:
        message: dict[str, Any] = {"text": self._text, "error_code": 0}
        if usage is not None:
            total = usage.prompt_tokens + usage.completion_tokens
            message["usage"] = msgspec.to_builtins(wire.Usage(usage.prompt_tokens, usage.completion_tokens, total))
        logprobs = None if self._request.logprobs is None else msgspec.to_builtins(_logprobs(self._tokens))
        return message | {"finish_reason": finish_reason, "logprobs": logprobs}

    def _write(self, message: dict[str, Any], *, last: bool = False) -> None:
        if not self._stream:
            if last:
                self._exchange.reply_json(_encode(message))
            return
        outlet = self._exchange.outlet
        outlet.drop_backlog()  # whatever still waits for the client has less text than this
        outlet.write(json.dumps(message).encode() + b"\0", last=last)


def _logprobs(tokens: Sequence[TokenLogprob]) -> wire.Logprobs:
    offsets, position = [], 0
    for token in tokens:
        offsets.append(position)
        position += len(token.text)
    return wire.Logprobs(
        text_offset=tuple(offsets),
        tokens=tuple(token.text for token in tokens),
        token_logprobs=tuple(token.logprob for token in tokens),
        top_logprobs=tuple({} for _ in tokens),
    )
