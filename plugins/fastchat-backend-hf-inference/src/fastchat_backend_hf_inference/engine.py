"""The engine: requests go through huggingface_hub's client, and answers come back as chunks.

A provider or endpoint that goes away is no end of the engine: requests fail until it is back.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any, Self

import anyio
import anyio.to_thread
import msgspec
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.constants import is_offline_mode

from fastchat_backend_hf_inference.chat import CHAT, chat_arguments, read_chat
from fastchat_backend_hf_inference.client import one_call, opened_client
from fastchat_backend_hf_inference.failures import FOREIGN, as_serve_error
from fastchat_backend_hf_inference.options import HfInferenceOptions
from fastchat_backend_hf_inference.place import Place, find_place
from fastchat_backend_hf_inference.text_generation import TEXT_GENERATION, read_text, text_arguments
from fastchat_backend_openai.answers import UpstreamAnswer
from fastchat_backend_openai.dialects import capabilities_of
from fastchat_backend_openai.embeddings import unit_rows
from fastchat_backend_openai.failures import Failures
from fastchat_backend_openai.requests import check_room
from fastchat_serve import (
    Capability,
    ChatPrompt,
    Chunk,
    Embeddings,
    EmbedRequest,
    EngineError,
    EngineInfo,
    EngineLoad,
    EngineSetup,
    GenerateRequest,
    InvalidRequest,
    ServeError,
    StartupError,
    TextPrompt,
    Unsupported,
)

__all__ = ["HfInferenceEngine"]

ASSUMED_CONTEXT_LENGTH = 32_768


class HfInferenceEngine:
    """See the module.

    Attributes:
        fatal_error: Always None.
    """

    fatal_error: BaseException | None = None

    def __init__(self, setup: EngineSetup) -> None:
        if not isinstance(setup.options, HfInferenceOptions):
            raise TypeError(f"options must be HfInferenceOptions, not {type(setup.options).__name__}")
        self._model, self._options = setup.model, setup.options
        self._running = 0

    async def __aenter__(self) -> Self:
        options = self._options
        if is_offline_mode():
            raise StartupError("HF_HUB_OFFLINE is set, and huggingface_hub then connects to nothing. Unset it.")
        place = await anyio.to_thread.run_sync(find_place, self._model, options)
        self._place, self._kind = place, "router" if place.base_url is None else options.server
        self._failures = Failures([place.token, place.base_url or ""])
        self._exits = AsyncExitStack()
        client = opened_client(place, bill_to=options.bill_to, timeout_s=options.timeout_s)
        self._client: AsyncInferenceClient = await self._exits.enter_async_context(client)
        self.info = _info(options, place, self._kind)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        with anyio.CancelScope(shield=True):
            await self._exits.aclose()

    async def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        begun = False
        self._running += 1
        try:
            async with one_call(self._client) as call, aclosing(self._answer(call, request)) as chunks:
                async for chunk in chunks:
                    yield chunk
                    begun = True
        except (ServeError, *FOREIGN) as error:
            raise await as_serve_error(error, self._failures, begun=begun) from None
        finally:
            self._running -= 1

    async def embed(self, request: EmbedRequest) -> Embeddings:
        texts = [item.text for item in request.inputs if isinstance(item, TextPrompt)]
        if len(texts) < len(request.inputs):
            raise Unsupported("This model embeds texts, not token ids.", param="input")
        _check_unicode(texts)
        self._running += 1
        try:
            async with one_call(self._client) as call:
                found = await call.feature_extraction(texts, normalize=True, truncate=request.truncate)
        except FOREIGN as error:
            raise await as_serve_error(error, self._failures, begun=False) from None
        finally:
            self._running -= 1
        if found.ndim != 2 or len(found) != len(texts):
            raise EngineError("The upstream's vectors are not one for each input.")
        rows = [array("f", row.tobytes()) for row in found.astype("<f4")]
        return await anyio.to_thread.run_sync(unit_rows, rows, 0)

    def current_load(self) -> EngineLoad:
        return EngineLoad(running=self._running)

    def _answer(self, call: AsyncInferenceClient, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        prompt, stop = request.prompt, request.sampling.stop
        check_room(request, self._options.context_length or self._place.context_length)
        arguments: dict[str, Any]
        if isinstance(prompt, ChatPrompt):
            arguments = chat_arguments(request, prompt, kind=self._kind, options=self._options)
            _check_unicode(arguments)
            answer = UpstreamAnswer(
                stop, alternatives=request.logprobs or 0, estimate=self._options.usage == "estimate"
            )
            return read_chat(call, self._place.model, arguments, answer)
        if not isinstance(prompt, TextPrompt):
            raise Unsupported("This model takes text, not token ids.", param="prompt")
        arguments = text_arguments(request, prompt)
        _check_unicode(arguments)
        return read_text(call, arguments, stop=stop, alternatives=request.logprobs)


def _info(options: HfInferenceOptions, place: Place, kind: str) -> EngineInfo:
    can = set[Capability]()
    if "chat" in options.tasks:
        can |= capabilities_of(CHAT[kind], ("chat",), options.lacks)
    if "text-generation" in options.tasks:
        # What a request for either may ask for is what both can; the rest is about conversations.
        both = TEXT_GENERATION & can if "chat" in options.tasks else TEXT_GENERATION
        can = {*can & _OF_CHATS, *both, Capability.GENERATE, Capability.TEXT_PROMPT}
    if "feature-extraction" in options.tasks:
        can.add(Capability.EMBED)
    context_length = options.context_length or place.context_length
    notes = []
    if context_length is None:
        notes.append(f"The context length is not known; {ASSUMED_CONTEXT_LENGTH} is assumed.")
    if "feature-extraction" in options.tasks:
        notes.append("Tokens of embeddings are not counted.")
    if options.usage == "estimate":
        notes.append("Token counts are estimates.")
    return EngineInfo(
        context_length=context_length or ASSUMED_CONTEXT_LENGTH,
        capabilities=frozenset(can - set(options.lacks)),
        notes=tuple(notes),
    )


_OF_CHATS = frozenset({Capability.CHAT, Capability.TOOLS, Capability.TOOL_CALLS, Capability.TOOL_CHOICE})


def _check_unicode(values: object) -> None:
    """Raises `InvalidRequest` for half a character, which the client would send as an escape."""
    try:
        msgspec.json.encode(values)
    except UnicodeError:
        raise InvalidRequest("The prompt is not valid Unicode.", param="prompt") from None
