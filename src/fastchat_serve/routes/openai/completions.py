"""``POST /v1/completions``: text or token ids in, text out, several prompts at once."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from fastchat_serve.engine import Chunk, GenerateRequest, TextPrompt, TokenLogprob, TokenPrompt, Usage
from fastchat_serve.errors import InvalidRequest, Unsupported
from fastchat_serve.protocol import openai as wire
from fastchat_serve.routes.answer import Answer, Reply, begin_answer, total_usage
from fastchat_serve.routes.exchange import Exchange, decode
from fastchat_serve.routes.hot import End, HotRoute
from fastchat_serve.routes.openai.awake import begin_awake
from fastchat_serve.routes.openai.chat import include_usage, stop_reason, wire_usage
from fastchat_serve.routes.openai.logprobs import completion_logprobs
from fastchat_serve.routes.openai.params import choice_seed, constraint, policy, sampling_params, session
from fastchat_serve.routes.openai.service import Service
from fastchat_serve.routes.openapi import documented
from fastchat_serve.routes.plain import PlainReply
from fastchat_serve.routes.sse import DONE, EventReply, event

__all__ = ["completions_route", "prompts_of"]

_DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this route."""

_decoder = msgspec.json.Decoder(wire.CompletionRequest)
_encode = msgspec.json.Encoder().encode


def completions_route(service: Service) -> HotRoute:
    """The route, bound to what it serves from."""

    def begin(exchange: Exchange, body: bytes) -> End:
        request = decode(_decoder, body)

        def answer() -> End:
            requests, chooser = _generate_requests(request, service, exchange), policy(service.policies, exchange)
            dialect = CompletionDialect(
                requests[0].id,
                request.model,
                n=request.n or 1,
                echo=bool(request.echo),
                logprobs=request.logprobs is not None,
                include_usage=include_usage(request),
            )
            reply_type: type[Reply] = EventReply if request.stream else PlainReply
            observation = service.metrics.begin("text_completion", request.model, exchange.waited_s)
            reply = reply_type(exchange, dialect, observation, len(requests))
            return begin_answer(service.dispatcher, request.model, requests, reply, chooser)

        return begin_awake(service.waking, request.model, exchange, answer)

    opt = documented(
        "Continue a text",
        "generation",
        wire.Completion,
        request=wire.CompletionRequest,
        events=wire.Completion,
        method="POST",
    )
    return HotRoute(path="/v1/completions", limit_bytes=service.max_body_bytes, begin=begin, opt=opt)


def prompts_of(
    given: str | tuple[str | int | tuple[int, ...], ...], limit: int, param: str
) -> list[TextPrompt | TokenPrompt]:
    """The prompts in any of OpenAI's four forms: a text, texts, token ids, lists of token ids."""
    if isinstance(given, str):
        return [TextPrompt(given)]
    if not given:
        raise InvalidRequest(f"{param} must not be empty.", param=param)
    if all(isinstance(item, int) for item in given):
        return [_tokens(given, param)]  # type: ignore[arg-type]
    if len(given) > limit:
        raise InvalidRequest(f"{param} has {len(given)} entries; at most {limit} are taken.", param=param)
    prompts: list[TextPrompt | TokenPrompt] = []
    for item in given:
        if isinstance(item, int):
            raise InvalidRequest(f"{param} mixes token ids with other entries.", param=param)
        prompts.append(TextPrompt(item) if isinstance(item, str) else _tokens(item, param))
    return prompts


def _tokens(ids: tuple[int, ...], param: str) -> TokenPrompt:
    if not ids:
        raise InvalidRequest(f"{param} has an empty list of token ids.", param=param)
    return TokenPrompt(ids)


def _generate_requests(request: wire.CompletionRequest, service: Service, exchange: Exchange) -> list[GenerateRequest]:
    """One request of the contract per choice, prompt by prompt. Raises `InvalidRequest` kinds."""
    limits, n = service.limits, request.n or 1
    worker = service.dispatcher.an_able(request.model)
    if request.suffix:
        raise Unsupported("suffix is not supported: no engine here fills in the middle.", param="suffix")
    if request.logprobs is not None and request.logprobs > limits.max_logprobs:
        raise InvalidRequest(f"logprobs can be at most {limits.max_logprobs}.", param="logprobs")
    prompts = prompts_of(request.prompt, limits.max_prompts, "prompt")
    if len(prompts) * n > limits.max_answers:
        raise InvalidRequest(f"prompts times n is over {limits.max_answers}.", param="n")
    max_tokens = _DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    if max_tokens == 0 and not request.echo:
        raise InvalidRequest("max_tokens 0 makes sense only together with echo.", param="max_tokens")
    sampling = sampling_params(request, limits, max_tokens, worker.info.sampling)
    echo_logprobs = request.logprobs if request.echo else None
    answer_id, session_ = f"cmpl-{exchange.unique_id}", session(request, exchange)
    return [
        GenerateRequest(
            id=answer_id if number == 0 else f"{answer_id}-{number}",
            prompt=prompts[number // n],
            sampling=msgspec.structs.replace(sampling, seed=choice_seed(sampling.seed, number % n)),
            logprobs=request.logprobs,
            prompt_logprobs=echo_logprobs,
            echo=bool(request.echo),
            constraint=constraint(None, request.structured_outputs),
            priority=request.priority or 0,
            adapter=request.model if request.model in worker.adapters else None,
            tenant=exchange.tenant,
            session=session_,
        )
        for number in range(len(prompts) * n)
    ]


class CompletionDialect:
    """How completions are written. Choices are numbered prompt by prompt, `n` of each."""

    def __init__(self, answer_id: str, model: str, *, n: int, echo: bool, logprobs: bool, include_usage: bool) -> None:
        self._id, self._model, self._created = answer_id, model, int(time.time())
        self._n, self._echo, self._logprobs, self._include_usage = n, echo, logprobs, include_usage
        self._offsets: dict[int, int] = {}

    def body(self, answers: Sequence[Answer], total: Usage) -> bytes:
        choices = []
        for index, whole in enumerate(answers):
            prompt = whole.prompt if self._echo else None
            logprobs = completion_logprobs(prompt, whole.logprobs or ()) if self._logprobs else None
            text = (prompt.text if prompt is not None else "") + whole.text
            stopped_by = stop_reason(whole.stop_match)
            choices.append(wire.CompletionChoice(index, text, logprobs, whole.finish_reason, stopped_by))
        usage = wire_usage(total)
        return _encode(wire.Completion(self._id, self._created, self._model, tuple(choices), usage))

    def opening(self, index: int) -> bytes:
        return b""

    def template(self, index: int) -> tuple[bytes, bytes] | None:
        if self._logprobs:
            return None
        # At the last NUL: the model's name, which comes before, may hold one.
        before, _, after = self._event(wire.CompletionChoice(index, "\0")).rpartition(b"\\u0000")
        return before, after

    def events(self, index: int, chunk: Chunk) -> bytes:
        prompt = chunk.prompt if self._echo else None
        text = (prompt.text if prompt is not None else "") + chunk.text
        logprobs = self._part_logprobs(index, chunk) if self._logprobs else None
        if not text and chunk.finish_reason is None and (logprobs is None or not logprobs.tokens):
            return b""
        stopped_by = stop_reason(chunk.stop_match)
        return self._event(wire.CompletionChoice(index, text, logprobs, chunk.finish_reason, stopped_by))

    def closing(self, total: Usage) -> bytes:
        if not self._include_usage:
            return DONE
        usage = wire_usage(total)
        return event(wire.Completion(self._id, self._created, self._model, (), usage)) + DONE

    def total(self, usages: Sequence[Usage]) -> Usage:
        return total_usage(usages, self._n)

    def _part_logprobs(self, index: int, chunk: Chunk) -> wire.CompletionLogprobs:
        tokens: tuple[TokenLogprob, ...] = chunk.logprobs or ()
        part = completion_logprobs(chunk.prompt if self._echo else None, tokens, self._offsets.get(index, 0))
        if part.tokens:
            self._offsets[index] = part.text_offset[-1] + len(part.tokens[-1])
        return part

    def _event(self, choice: wire.CompletionChoice) -> bytes:
        usage = None if self._include_usage else msgspec.UNSET
        return event(wire.Completion(self._id, self._created, self._model, (choice,), usage))
