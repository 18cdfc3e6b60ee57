"""A model behind a worker of FastChat's, under our contract.

The worker continues texts; conversations are rendered here, with the template that it sent. It cuts prompts that are
too long at their beginning and says nothing of it, so their length is asked for before, wherever it could matter.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final, Self

import msgspec
from msgspec import Struct

from fastchat_serve.engine import (
    Capability,
    ChatPrompt,
    Chunk,
    Embeddings,
    EmbedRequest,
    EngineInfo,
    EngineLoad,
    FinishReason,
    GenerateRequest,
    TextPrompt,
    TokenPrompt,
    Usage,
)
from fastchat_serve.errors import (
    ContextOverflow,
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    OutOfMemory,
    ServeError,
    Unavailable,
    Unsupported,
)
from fastchat_serve.fastchat.client import Client, NotOffered, Silent, Unreachable
from fastchat_serve.fastchat.conversation import render
from fastchat_serve.fastchat.cumulative import Cumulative
from fastchat_serve.protocol import fastchat as wire
from fastchat_serve.text import StopStrings

__all__ = ["About", "FastChatEngine"]

logger = logging.getLogger(__name__)
_embeddings = msgspec.json.Decoder(wire.EmbedReply)
_failure = msgspec.json.Decoder(wire.Failure)

KEPT_FREE: Final = 1
"""Tokens that FastChat's generator keeps free of the context: it would cut the prompt's first one for it."""
_TEXTS_PER_CALL: Final = 32


class About(Struct, frozen=True, kw_only=True):
    """What is known of one model of a worker."""

    name: str
    context_length: int
    template: wire.Conversation | None
    embeds: bool = False
    counter: Client | None = None
    """Who counts tokens; None: nobody."""


class FastChatEngine:
    """See the module.

    Args:
        client: Calls the worker.
        about: What it said of the model.
        suspect: Called when the worker cannot be reached.
    """

    def __init__(self, client: Client, about: About, suspect: Callable[[], None]) -> None:
        self._client, self._about, self._suspect = client, about, suspect
        self._running = 0
        self.fatal_error: BaseException | None = None
        self.info = EngineInfo(
            context_length=about.context_length,
            capabilities=_capabilities(about),
            notes=("behind a worker of FastChat's",),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """The client is its peer's."""

    def current_load(self) -> EngineLoad:
        return EngineLoad(running=self._running)

    async def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        self._running += 1
        try:
            async with aclosing(self._answer(request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except (Unreachable, Silent):
            self._suspect()
            raise
        finally:
            self._running -= 1

    async def embed(self, request: EmbedRequest) -> Embeddings:
        texts = [_text(prompt) for prompt in request.inputs]
        vectors, tokens, dimensions = array("f"), 0, 0
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            wanted = wire.EmbedParams(tuple(texts[start : start + _TEXTS_PER_CALL]), self._about.name)
            found = await self._vectors(wanted, request.id)
            for row in found.embedding:
                if isinstance(row, str):
                    raise EngineError("The FastChat worker sent vectors in a form that was not asked for.")
                vectors.extend(row)
                dimensions = len(row)
            tokens += found.token_num
        if len(vectors) != dimensions * len(texts):
            raise EngineError("The FastChat worker sent vectors of another number or length.")
        return Embeddings(vectors.tobytes(), dimensions, tokens)

    async def count(self, prompt: TextPrompt | ChatPrompt) -> int:
        """How many tokens the worker makes of `prompt`; 0 if it cannot tell. Raises `ServeError`."""
        return await self._count(self._text(prompt)[0])

    async def _vectors(self, wanted: wire.EmbedParams, request_id: str) -> wire.EmbedReply:
        """As long as that may take: `Timeouts` bounds it."""
        content = await self._client.post("/worker_get_embeddings", wanted, within_s=None)
        try:
            return _embeddings.decode(content)
        except msgspec.DecodeError:
            pass
        try:
            failure = _failure.decode(content)
        except msgspec.DecodeError as error:
            raise EngineError(f"The FastChat worker sent what are no vectors: {error}.") from None
        raise _failed(failure.error_code, failure.text, request_id)

    async def _answer(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        prompt, template = self._text(request.prompt)
        max_tokens = await self._room(request, prompt)
        params = _params(request, self._about.name, prompt, max_tokens, template)
        text, stop = Cumulative(), StopStrings(request.sampling.stop)
        message = None
        async with aclosing(self._client.messages("/worker_generate_stream", params)) as messages:
            async for message in messages:
                if message.error_code:
                    raise _failed(message.error_code, message.text, request.id)
                if new := stop.feed(text.feed(message.text)):
                    yield Chunk(text=new)
                if stop.matched is not None:
                    break
        if message is None:
            raise EngineError("The FastChat worker ended the answer before it began.")
        rest = stop.feed(text.finish()) if stop.matched is None else ""
        rest += stop.flush()
        if text.rewritten:
            logger.warning("Request %s: the FastChat worker changed text that it had sent before.", request.id)
        usage = await self._usage(message, prompt)
        yield Chunk(
            text=rest,
            finish_reason="stop" if stop.matched is not None else _finish_reason(message.finish_reason),
            stop_match=stop.matched,
            usage=usage,
        )

    def _text(self, prompt: TextPrompt | TokenPrompt | ChatPrompt) -> tuple[str, wire.Conversation | None]:
        """The text to continue, and the template that it was written with."""
        if not isinstance(prompt, ChatPrompt):
            return _text(prompt), None
        template = self._about.template
        if template is None:
            raise Unsupported("This model has no chat template, so it cannot chat.", param="messages")
        if prompt.continue_final:
            raise Unsupported("This model's template cannot leave the last message open.", param="messages")
        if prompt.template_options:
            raise Unsupported("This model's template has nothing to set.", param="chat_template_kwargs")
        return render(template, prompt.messages), template

    async def _room(self, request: GenerateRequest, prompt: str) -> int:
        """How many tokens to ask for. Raises `ContextOverflow`."""
        limit = self._about.context_length - KEPT_FREE
        wanted = request.sampling.max_tokens
        at_most = len(prompt.encode()) + 1  # no token is less than a byte, but for the one that begins the text
        if wanted is not None and at_most + wanted <= limit:
            return wanted
        known = await self._count(prompt)
        room = limit - known
        if room < (1 if wanted is None else wanted):
            param = "messages" if isinstance(request.prompt, ChatPrompt) else "prompt"
            raise ContextOverflow(limit=limit, prompt_tokens=known, max_tokens=wanted or 1, param=param)
        return room if wanted is None else wanted

    async def _count(self, text: str) -> int:
        if self._about.counter is None:
            return 0
        try:
            asked = wire.CountRequest(text, self._about.name)
            return (await self._about.counter.call("/count_token", asked, wire.CountReply)).count
        except NotOffered:
            return 0

    async def _usage(self, last: wire.Message, prompt: str) -> Usage:
        """As the worker counted, or else as it counts when it is asked."""
        counts = [(last.usage or {}).get(kind) for kind in ("prompt_tokens", "completion_tokens")]
        match counts:
            case [int(read), int(written)] if read >= 0 and written >= 0:
                return Usage(read, written)
        read = await self._count(prompt)
        return Usage(read, max(await self._count(prompt + last.text) - read, 0))


def _capabilities(about: About) -> frozenset[Capability]:
    able = {
        Capability.GENERATE,
        Capability.TEXT_PROMPT,
        Capability.TOP_K,
        Capability.REPETITION_PENALTY,
        Capability.STOP_TOKEN_IDS,
    }
    if about.template is not None:
        able.add(Capability.CHAT)
    if about.embeds:
        able.add(Capability.EMBED)
    return frozenset(able)


def _params(
    request: GenerateRequest, model: str, prompt: str, max_tokens: int, template: wire.Conversation | None
) -> wire.GenerateParams:
    sampling = request.sampling
    if sampling.repetition_penalty < 1:
        raise Unsupported("This model's worker takes no repetition_penalty below 1.", param="repetition_penalty")
    stops, stop_ids = list(sampling.stop), list(sampling.stop_token_ids)
    if template is not None:
        stops += [template.stop_str] if isinstance(template.stop_str, str) else template.stop_str or ()
        stop_ids += template.stop_token_ids or ()
    return wire.GenerateParams(
        model=model,
        prompt=prompt,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or -1,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        max_new_tokens=max_tokens,
        echo=False,
        stop=tuple(dict.fromkeys(stops)),
        stop_token_ids=tuple(dict.fromkeys(stop_ids)),
    )


def _finish_reason(said: str | None) -> FinishReason:
    """Some workers never give one; they end where their model does."""
    match said:
        case "length":
            return "length"
        case "stop" | None:
            return "stop"
        case _:
            raise EngineError("The FastChat worker broke the answer off.")


def _text(prompt: TextPrompt | TokenPrompt | ChatPrompt) -> str:
    if not isinstance(prompt, TextPrompt):
        raise Unsupported("This model takes text only.", param="prompt")
    return prompt.text


def _failed(code: int, said: str, request_id: str) -> ServeError:
    """The error for a number of FastChat's. What was said goes to the log: it may name files and addresses."""
    logger.warning("Request %s: the FastChat worker failed (%d): %.500s", request_id, code, said)
    match code:
        case wire.ErrorCode.CONTEXT_OVERFLOW:
            return InvalidRequest("The prompt is too long for this model.", code="context_length_exceeded")
        case wire.ErrorCode.OUT_OF_MEMORY:
            return OutOfMemory("The FastChat worker had not enough memory for this request.", retry_after_s=1.0)
        case wire.ErrorCode.NO_WORKER | wire.ErrorCode.ENGINE_OVERLOADED:
            return Unavailable("The FastChat controller has no worker for this request.", retry_after_s=1.0)
        case wire.ErrorCode.WORKER_TIMEOUT:
            return DeadlineExceeded("The FastChat worker did not answer in time.")
        case code if 40000 <= code < 50000:
            return InvalidRequest(f"The FastChat worker refuses this request (error {code}).")
        case _:
            return EngineError(f"The FastChat worker failed on this request (error {code}).")
