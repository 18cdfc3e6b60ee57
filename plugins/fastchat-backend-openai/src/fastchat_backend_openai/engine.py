"""The engine: requests go out as OpenAI's API has them, and events come back as chunks.

A push engine: what one read of a connection brought for an answer reaches its sink in one call, and no task is
woken. An upstream that goes away is no end of the engine, since it may come back: requests fail meanwhile, and the
engine's notes and the log say so.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Any, Self

import anyio
import anyio.to_thread
import msgspec

from fastchat_backend_openai.address import Address
from fastchat_backend_openai.answers import UpstreamAnswer
from fastchat_backend_openai.connect import Connector, trusted
from fastchat_backend_openai.dialects import DIALECTS, capabilities_of
from fastchat_backend_openai.embeddings import read_embeddings
from fastchat_backend_openai.failures import Failures
from fastchat_backend_openai.http import Upstream
from fastchat_backend_openai.options import OpenAIOptions
from fastchat_backend_openai.pool import Pool
from fastchat_backend_openai.probe import Found, probe
from fastchat_backend_openai.requests import chat_body, check_room, completion_body, embedding_body
from fastchat_backend_openai.stream import Stream
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
    Handle,
    InvalidRequest,
    ServeError,
    Sink,
    StartupError,
    Unavailable,
    pull,
)

__all__ = ["OpenAIEngine"]

logger = logging.getLogger(__name__)

ASSUMED_CONTEXT_LENGTH = 131_072
_NOTED_FAILURES = 3
"""In a row, before the engine's notes tell of it."""
_CHAT, _COMPLETIONS, _EMBEDDINGS = "/chat/completions", "/completions", "/embeddings"

_encode = msgspec.json.Encoder().encode


class OpenAIEngine:
    """See the module.

    Attributes:
        fatal_error: Always None.
    """

    fatal_error: BaseException | None = None

    def __init__(self, setup: EngineSetup) -> None:
        if not isinstance(setup.options, OpenAIOptions):
            raise TypeError(f"options must be OpenAIOptions, not {type(setup.options).__name__}")
        self._setup, self._options = setup, setup.options
        try:
            self._address = Address.of(self._options.base_url)
            self._proxy = Address.of(self._options.proxy) if self._options.proxy else None
        except ValueError as error:
            raise StartupError(f"base_url or proxy is no URL: {error}") from error
        if self._options.lazy and not setup.model:
            raise StartupError("lazy = true needs the name of a model, since the upstream is not asked for one.")
        self._streams: set[Stream] = set()
        self._embedding = 0
        self._failures_in_a_row = 0

    async def __aenter__(self) -> Self:
        options = self._options
        key = _key(options)
        tls = await anyio.to_thread.run_sync(trusted, options.ca_file) if self._address.secure else None
        connect = Connector(self._address, tls=tls, proxy=self._proxy, timeout_s=options.connect_timeout_s)
        self._pool = Pool(connect, max_connections=options.max_connections, read_timeout_s=options.read_timeout_s)
        headers = {name: value.reveal() for name, value in options.extra_headers.items()}
        proxied = self._proxy is not None and not self._address.secure
        self._upstream = Upstream(self._pool, self._address, key, headers, proxied=proxied)
        self._failures = Failures([key, *headers.values(), self._address.authority, self._address.host])
        self._salt = secrets.token_bytes(16)
        try:
            self._set_up(await self._look())
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for stream in tuple(self._streams):
            stream.fail(EngineError("The engine was closed."))
        await self._close()

    @property
    def info(self) -> EngineInfo:
        return self._info

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        loop = asyncio.get_running_loop()
        answer = UpstreamAnswer(
            request.sampling.stop,
            alternatives=request.logprobs or 0,
            estimate=self._options.usage == "estimate",
        )
        stream = Stream(sink, answer, self._failures, self._on_over)
        self._streams.add(stream)
        try:
            path, body = self._body(request)
            data = _json(body)
        except ServeError as error:
            loop.call_soon(stream.fail, error)
        else:
            stream.call = self._pool.submit(self._upstream.post(path, data, request.id), stream)
        return stream

    def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        return pull(self.start, request)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        body = {"model": self._model, **embedding_body(request, dialect=self._dialect)}
        self._embedding += 1
        try:
            post = self._upstream.post(_EMBEDDINGS, _json(body), request.id)
            reply = await self._upstream.fetch(post, self._options.max_reply_bytes)
            if reply.head.status != 200:
                raise self._failures.of_reply(reply.head.status, reply.body, reply.head.get(b"retry-after"))
            read = partial(read_embeddings, usage_needed=self._options.usage != "estimate")
            vectors = await anyio.to_thread.run_sync(read, reply.body, len(request.inputs))
        except ServeError as error:
            self._note(error)
            raise
        finally:
            self._embedding -= 1
        self._note(None)
        return vectors

    def current_load(self) -> EngineLoad:
        waiting = self._pool.waiting
        return EngineLoad(running=len(self._streams) + self._embedding - waiting, waiting=waiting)

    # ------------------------------------------------------------------------------------------------

    async def _look(self) -> Found:
        options, model = self._options, self._setup.model
        if options.lazy:
            return Found(model, "openai" if options.dialect == "auto" else options.dialect)
        address = self._address
        return await probe(self._upstream, address.path, address.root, model, options, self._setup.progress)

    def _set_up(self, found: Found) -> None:
        options, dialect = self._options, DIALECTS[found.dialect]
        self._model, self._dialect = found.model, dialect
        self._max_tokens_field = options.max_tokens_field
        if self._max_tokens_field == "auto":
            own_cloud = self._address.host == "api.openai.com"
            self._max_tokens_field = "max_completion_tokens" if own_cloud else "max_tokens"
        lacks = set(options.lacks)
        if not options.send_seed:
            lacks.add(Capability.SEED)
        apis = options.apis or dialect.apis
        if found.workers is not None:
            lacks |= set(Capability) - found.workers - {Capability.TOOL_CALLS}
            if not options.apis and Capability.EMBED in found.workers:
                apis = (*apis, "embeddings")
        self._context_length = context_length = options.context_length or found.context_length
        notes = [f"The upstream speaks the dialect {found.dialect}."]
        if context_length is None:
            notes.append(f"Its context length is not known; {ASSUMED_CONTEXT_LENGTH} is assumed.")
        if options.usage == "estimate":
            notes.append("Token counts are estimates.")
        self._info = EngineInfo(
            context_length=context_length or ASSUMED_CONTEXT_LENGTH,
            capabilities=capabilities_of(dialect, apis, lacks),
            notes=tuple(notes),
        )

    def _body(self, request: GenerateRequest) -> tuple[str, dict[str, Any]]:
        """Where a request goes, and what is sent. Raises kinds of `InvalidRequest`."""
        options, dialect, prompt = self._options, self._dialect, request.prompt
        check_room(request, self._context_length)
        body: dict[str, Any] = {"model": self._model, "stream": True}
        if options.usage == "ask":
            body["stream_options"] = {"include_usage": True}
        if dialect.token_ids and Capability.TOKEN_IDS in self._info.capabilities:
            body["return_token_ids"] = True
        if dialect.cache_salt and request.tenant:
            body["cache_salt"] = hashlib.blake2b(request.tenant.encode(), key=self._salt, digest_size=16).hexdigest()
        if isinstance(prompt, ChatPrompt):
            return _CHAT, body | chat_body(
                request,
                prompt,
                dialect=dialect,
                template_options=options.chat_template_kwargs,
                max_tokens_field=self._max_tokens_field,
                send_seed=options.send_seed,
            )
        return _COMPLETIONS, body | completion_body(request, prompt, dialect=dialect, send_seed=options.send_seed)

    def _on_over(self, stream: Stream, error: ServeError | None) -> None:
        self._streams.discard(stream)
        if error is not None or stream.heard:  # one given up before anything came tells nothing
            self._note(error)

    def _note(self, error: ServeError | None) -> None:
        """Count failures of the upstream in a row; an answer, or a refusal of its, shows that it is there."""
        if isinstance(error, Unavailable):
            self._failures_in_a_row += 1
            if self._failures_in_a_row == _NOTED_FAILURES:
                logger.error(
                    "The upstream of model %s is not available: %d requests in a row have failed.",
                    self._model,
                    _NOTED_FAILURES,
                )
                self._info = msgspec.structs.replace(self._info, notes=(*self._info.notes, _AWAY))
        elif self._failures_in_a_row:
            self._failures_in_a_row = 0
            if _AWAY in self._info.notes:
                logger.warning("The upstream of model %s answers again.", self._model)
                notes = tuple(note for note in self._info.notes if note != _AWAY)
                self._info = msgspec.structs.replace(self._info, notes=notes)

    async def _close(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._pool.close()


_AWAY = "The upstream does not answer at the moment."


def _json(body: dict[str, Any]) -> bytes:
    """Raises `InvalidRequest` for half a character, which JSON cannot hold."""
    try:
        return _encode(body)
    except UnicodeError:
        raise InvalidRequest("The prompt is not valid Unicode.", param="prompt") from None


def _key(options: OpenAIOptions, environ: Mapping[str, str] | None = None) -> str:
    """The key to send; empty for none. Raises `StartupError`."""
    environ = os.environ if environ is None else environ
    if options.api_key_env is not None:
        key = environ.get(options.api_key_env, "")
        if not key:
            raise StartupError(f"The environment variable {options.api_key_env}, named by api_key_env, is not set.")
    else:
        key = options.api_key.reveal() if options.api_key is not None else ""
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise StartupError("The API key holds characters that cannot be sent.")
    return key
