"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from types import MappingProxyType

import msgspec

from fastchat_serve.engine import (
    Capability,
    ChatPrompt,
    Chunk,
    GenerateRequest,
    Message,
    TextPart,
    ToolCall,
    ToolSpec,
    Usage,
)
from fastchat_serve.errors import InvalidRequest, Unsupported
from fastchat_serve.hookspecs import ToolParserFactory
from fastchat_serve.protocol import openai as wire
from fastchat_serve.routes.answer import Answer, Reply, begin_answer, total_usage
from fastchat_serve.routes.exchange import Exchange, decode
from fastchat_serve.routes.hot import End, HotRoute
from fastchat_serve.routes.openai.awake import begin_awake
from fastchat_serve.routes.openai.logprobs import chat_logprobs
from fastchat_serve.routes.openai.params import choice_seed, constraint, policy, sampling_params, session
from fastchat_serve.routes.openai.service import Service
from fastchat_serve.routes.openapi import documented
from fastchat_serve.routes.plain import PlainReply
from fastchat_serve.routes.sse import DONE, EventReply, event
from fastchat_serve.text import TextDelta, ToolEvent, ToolParser

__all__ = ["begin_chat", "chat_route", "generate_requests", "include_usage", "stop_reason", "wire_usage"]

_decoder = msgspec.json.Decoder(wire.ChatCompletionRequest)
_encode = msgspec.json.Encoder().encode


def chat_route(service: Service) -> HotRoute:
    """The route, bound to what it serves from."""

    def begin(exchange: Exchange, body: bytes) -> End:
        request = decode(_decoder, body)

        def answer() -> End:
            requests = generate_requests(request, service, exchange)
            return begin_chat(request, requests, service, exchange, EventReply if request.stream else PlainReply)

        return begin_awake(service.waking, request.model, exchange, answer)

    opt = documented(
        "Answer a conversation",
        "generation",
        wire.ChatCompletion,
        request=wire.ChatCompletionRequest,
        events=wire.ChatCompletionChunk,
        method="POST",
    )
    return HotRoute(path="/v1/chat/completions", limit_bytes=service.max_body_bytes, begin=begin, opt=opt)


def begin_chat(
    request: wire.ChatCompletionRequest,
    requests: Sequence[GenerateRequest],
    service: Service,
    exchange: Exchange,
    reply_type: type[Reply],
) -> End:
    """Begin the answers to `requests`, which are those of `request`. Raises as `begin_answer` does."""
    chooser = policy(service.policies, exchange)
    offers_tools = isinstance(requests[0].prompt, ChatPrompt) and bool(requests[0].prompt.tools)
    dialect = ChatDialect(
        requests[0].id,
        request.model,
        include_usage=include_usage(request),
        logprobs=bool(request.logprobs),
        tools=offers_tools,
        tool_parser=_tool_parser(request.model, service) if offers_tools else None,
        one_call=request.parallel_tool_calls is False,
    )
    observation = service.metrics.begin("chat", request.model, exchange.waited_s)
    reply = reply_type(exchange, dialect, observation, len(requests))
    return begin_answer(service.dispatcher, request.model, requests, reply, chooser)


def include_usage(request: wire.Sampling) -> bool:
    """Whether a stream reports usage in an event of its own."""
    return bool(request.stream_options and request.stream_options.include_usage)


def generate_requests(
    request: wire.ChatCompletionRequest, service: Service, exchange: Exchange
) -> list[GenerateRequest]:
    """One request of the contract per choice. Raises `InvalidRequest` kinds."""
    limits = service.limits
    worker = service.dispatcher.an_able(request.model)  # an unknown model is the first thing to say
    _refuse_unknown_ways(request)
    if len(request.messages) > limits.max_messages:
        raise InvalidRequest(f"messages has more than {limits.max_messages} entries.", param="messages")
    alternatives = request.top_logprobs or 0
    if alternatives and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
    if alternatives > limits.max_logprobs:
        raise InvalidRequest(f"top_logprobs can be at most {limits.max_logprobs}.", param="top_logprobs")
    max_tokens = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    sampling = sampling_params(request, limits, max_tokens, worker.info.sampling)
    first = GenerateRequest(
        id=(answer_id := f"chatcmpl-{exchange.unique_id}"),
        prompt=ChatPrompt(
            tuple([_message(message, index) for index, message in enumerate(request.messages)]),
            tools=_tools(request, limits.max_tools),
            tool_choice=_tool_choice(request),
            continue_final=bool(request.continue_final_message),
            template_options=request.chat_template_kwargs,
        ),
        sampling=sampling,
        logprobs=alternatives if request.logprobs else None,
        constraint=constraint(request.response_format, request.structured_outputs),
        priority=request.priority or 0,
        adapter=request.model if request.model in worker.adapters else None,
        tenant=exchange.tenant,
        session=session(request, exchange),
    )
    if (request.n or 1) == 1:
        return [first]
    replace = msgspec.structs.replace
    return [first] + [
        replace(first, id=f"{answer_id}-{i}", sampling=replace(sampling, seed=choice_seed(sampling.seed, i)))
        for i in range(1, request.n or 1)
    ]


class ChatDialect:
    """How chat completions are written.

    Args:
        tools: Tools were offered.
        tool_parser: Makes the parser of one choice's tool calls; None if there is nothing to parse.
        one_call: Keep only the first tool call of each choice.
    """

    def __init__(
        self,
        answer_id: str,
        model: str,
        *,
        include_usage: bool,
        logprobs: bool,
        tools: bool,
        tool_parser: ToolParserFactory | None,
        one_call: bool,
    ) -> None:
        self._id, self._model, self._created = answer_id, model, int(time.time())
        self._include_usage, self._logprobs, self._one_call = include_usage, logprobs, one_call
        self._tools, self._tool_parser = tools, tool_parser
        self._parsers: dict[int, ToolParser] = {}
        self._calls: defaultdict[int, int] = defaultdict(int)

    def body(self, answers: Sequence[Answer], total: Usage) -> bytes:
        choices = tuple([self._choice(index, whole) for index, whole in enumerate(answers)])
        usage = wire_usage(total)
        return _encode(wire.ChatCompletion(self._id, self._created, self._model, choices, usage))

    def opening(self, index: int) -> bytes:
        return self._event(index, wire.Delta(role="assistant", content=""))

    def template(self, index: int) -> tuple[bytes, bytes] | None:
        if self._logprobs or self._tools:
            return None
        # At the last NUL: the model's name, which comes before, may hold one.
        before, _, after = self._event(index, wire.Delta(content="\0")).rpartition(b"\\u0000")
        return before, after

    def events(self, index: int, chunk: Chunk) -> bytes:
        last = chunk.finish_reason is not None
        deltas = [wire.Delta(reasoning_content=chunk.reasoning)] if chunk.reasoning else []
        deltas += self._deltas(index, chunk.text, last)
        for call in chunk.tool_calls:
            if not (self._one_call and self._calls[index]):
                deltas.append(self._call_delta(index, call))
        logprobs = chat_logprobs(chunk.logprobs) if chunk.logprobs else None
        if logprobs is not None and not deltas:
            deltas = [wire.Delta(content="")]
        parts = []
        for delta in deltas:
            parts.append(self._event(index, delta, logprobs))
            logprobs = None
        if last:
            reason = "tool_calls" if self._calls[index] else chunk.finish_reason
            parts.append(
                self._event(index, wire.Delta(), finish_reason=reason, stop_reason=stop_reason(chunk.stop_match))
            )
        return b"".join(parts)

    def closing(self, total: Usage) -> bytes:
        if not self._include_usage:
            return DONE
        usage = wire_usage(total)
        return event(wire.ChatCompletionChunk(self._id, self._created, self._model, (), usage)) + DONE

    def total(self, usages: Sequence[Usage]) -> Usage:
        return total_usage(usages, max(len(usages), 1))

    def _event(
        self,
        index: int,
        delta: wire.Delta,
        logprobs: wire.ChatLogprobs | None = None,
        finish_reason: str | None = None,
        stop_reason: str | int | msgspec.UnsetType = msgspec.UNSET,
    ) -> bytes:
        choice = wire.ChunkChoice(index, delta, logprobs, finish_reason, stop_reason)
        usage = None if self._include_usage else msgspec.UNSET
        return event(wire.ChatCompletionChunk(self._id, self._created, self._model, (choice,), usage))

    def _deltas(self, index: int, text: str, last: bool) -> list[wire.Delta]:
        if self._tool_parser is None:
            return [wire.Delta(content=text)] if text else []
        if index not in self._parsers:
            self._parsers[index] = self._tool_parser()
        parser = self._parsers[index]
        found = parser.feed(text) + (parser.finish() if last else [])
        deltas = []
        for item in found:
            if isinstance(item, TextDelta):
                deltas.append(wire.Delta(content=item.text))
            elif not (self._one_call and item.index > 0):
                deltas.append(self._call_delta(index, ToolCall("", item.name, item.arguments)))
        return deltas

    def _call_delta(self, index: int, call: ToolCall) -> wire.Delta:
        number = self._calls[index]
        self._calls[index] += 1
        id_ = call.id or self._call_id(index, number)
        function = wire.FunctionCallDelta(call.name, call.arguments)
        return wire.Delta(tool_calls=(wire.ToolCallDelta(number, id_, function),))

    def _choice(self, index: int, whole: Answer) -> wire.ChatChoice:
        logprobs = chat_logprobs(whole.logprobs) if whole.logprobs is not None else None
        text: str | None = whole.text
        calls: tuple[wire.ToolCallMessage, ...] = ()
        if whole.tool_calls:
            calls = tuple(
                wire.ToolCallMessage(
                    call.id or self._call_id(index, number), wire.FunctionCall(call.name, call.arguments)
                )
                for number, call in enumerate(whole.tool_calls[: 1 if self._one_call else None])
            )
        if self._tool_parser is not None:
            parser = self._tool_parser()
            found: list[ToolEvent] = [*parser.feed(whole.text), *parser.finish()]
            text = "".join(item.text for item in found if isinstance(item, TextDelta))
            calls = tuple(
                wire.ToolCallMessage(self._call_id(index, item.index), wire.FunctionCall(item.name, item.arguments))
                for item in found
                if not isinstance(item, TextDelta) and not (self._one_call and item.index > 0)
            )
        message = wire.AssistantMessage(
            content=None if calls and not text else text,
            reasoning_content=whole.reasoning or msgspec.UNSET,
            tool_calls=calls or msgspec.UNSET,
        )
        finish_reason = "tool_calls" if calls else whole.finish_reason
        return wire.ChatChoice(index, message, logprobs, finish_reason, stop_reason(whole.stop_match))

    def _call_id(self, index: int, call: int) -> str:
        return f"call_{self._id.removeprefix('chatcmpl-')}_{index}_{call}"


def stop_reason(match: str | int | None) -> str | int | msgspec.UnsetType:
    """What stopped an answer, as vLLM writes it; left out where nothing did."""
    return msgspec.UNSET if match is None else match


def wire_usage(usage: Usage) -> wire.Usage:
    """Token counts as OpenAI writes them."""
    return wire.Usage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        wire.PromptTokensDetails(usage.cached_tokens),
    )


def _tool_parser(model: str, service: Service) -> ToolParserFactory | None:
    worker = service.dispatcher.an_able(model, frozenset({Capability.TOOLS}))
    if Capability.TOOL_CALLS in worker.info.capabilities:
        return None
    name = worker.tool_parser
    if name not in service.tool_parsers:
        raise Unsupported(
            f"Model {model!r} writes tool calls in no form that is known here. Configure the worker's tool_parser.",
            param="tools",
        )
    return service.tool_parsers[name]


def _refuse_unknown_ways(request: wire.ChatCompletionRequest) -> None:
    if request.functions or request.function_call:
        raise Unsupported("functions and function_call were replaced by tools and tool_choice.", param="functions")
    if request.web_search_options is not None:
        raise Unsupported("This server does not search the web.", param="web_search_options")
    if request.modalities and set(request.modalities) != {"text"}:
        raise Unsupported("Only the modality 'text' is supported.", param="modalities")
    if request.chat_template is not None:
        raise Unsupported(
            "A request cannot bring its own chat_template; the server's config can.", param="chat_template"
        )
    if request.continue_final_message and request.messages[-1].role != "assistant":
        raise InvalidRequest("continue_final_message needs a last message of the assistant.", param="messages")


def _tools(request: wire.ChatCompletionRequest, limit: int) -> tuple[ToolSpec, ...]:
    if not request.tools or request.tool_choice == "none":
        return ()
    if len(request.tools) > limit:
        raise InvalidRequest(f"tools has more than {limit} entries.", param="tools")
    return tuple(
        ToolSpec(tool.function.name, tool.function.description, tool.function.parameters) for tool in request.tools
    )


def _tool_choice(request: wire.ChatCompletionRequest) -> str | None:
    """As the contract has it."""
    match request.tool_choice:
        case wire.NamedToolChoice(function=function):
            return function.name
        case "required":
            return ""
        case _:
            return None


_ROLES = MappingProxyType({"developer": "system", "function": "tool"})
"""Newer and older names of roles that chat templates know."""


def _message(message: wire.ChatMessage, index: int) -> Message:
    content = message.content
    if content is None and not message.tool_calls and message.role != "assistant":
        raise InvalidRequest(
            f"A message of the {message.role} needs content, at $.messages[{index}].content.", param="messages"
        )
    return Message(
        role=_ROLES.get(message.role, message.role),
        content=content if content is None or isinstance(content, str) else _parts(content, index),
        name=message.name,
        tool_calls=tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls)
        if message.tool_calls
        else (),
        tool_call_id=message.tool_call_id,
    )


def _parts(content: tuple[wire.ContentPart, ...], message: int) -> tuple[TextPart, ...]:
    parts = []
    for index, part in enumerate(content):
        match part:
            case wire.TextPart(text=text) | wire.RefusalPart(refusal=text):
                parts.append(TextPart(text))
            case _:
                kind = type(part).__struct_config__.tag
                raise Unsupported(
                    f"Only text is supported as content, not {kind}, at $.messages[{message}].content[{index}].",
                    param="messages",
                )
    return tuple(parts)
