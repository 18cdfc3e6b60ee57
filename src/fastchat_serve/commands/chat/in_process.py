"""A model in this process, with no HTTP: the request goes from the dispatcher to the worker."""

from __future__ import annotations

import argparse
import random
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, aclosing, asynccontextmanager
from functools import partial

from fastchat_serve.app import Application
from fastchat_serve.commands.chat.partner import Partner, Settings
from fastchat_serve.commands.configured import config_from, first_failure, loading_progress
from fastchat_serve.controller.dispatcher import Dispatcher
from fastchat_serve.controller.waking import Waking
from fastchat_serve.engine import ChatPrompt, Chunk, GenerateRequest, Message, SamplingParams
from fastchat_serve.errors import ConfigError, StartupError, Unavailable
from fastchat_serve.push import pull

__all__ = ["in_process"]


class _InProcess:
    """`model`, through the application's dispatcher."""

    def __init__(self, dispatcher: Dispatcher, waking: Waking, model: str) -> None:
        self._dispatcher, self._waking = dispatcher, waking
        self.model, self.place = model, "in this process"

    async def answer(self, messages: Sequence[Message], settings: Settings) -> AsyncGenerator[Chunk, None]:
        await self._waking.wake(self.model)
        request = GenerateRequest(
            id=f"chat-{uuid.uuid4().hex}",
            prompt=ChatPrompt(tuple(messages)),
            sampling=SamplingParams(
                temperature=settings.temperature, max_tokens=settings.max_tokens, seed=random.getrandbits(64)
            ),
        )
        async with aclosing(pull(partial(self._dispatcher.start, self.model), request)) as chunks:
            async for chunk in chunks:
                yield chunk


def in_process(args: argparse.Namespace) -> AbstractAsyncContextManager[Partner]:
    """The model of ``--model``, or of ``--config``; there ``--model`` picks one if there are several.

    Raises:
        StartupError: Here, if the config cannot be; on entry, if the engine cannot be loaded.
    """
    config = config_from(args if args.config is None else argparse.Namespace(**{**vars(args), "model": None}))
    names = [name for worker in config.worker for name in worker.names]
    model = args.model if args.config is not None and args.model is not None else next(iter(names), "")
    until_loaded = ExitStack()
    application = Application(config, progress=until_loaded.enter_context(loading_progress()))
    if model not in names:
        raise ConfigError(f"--model: {args.config} has no model {model!r}, only {', '.join(names)}.")
    return _running(application, model, until_loaded)


@asynccontextmanager
async def _running(application: Application, model: str, until_loaded: ExitStack) -> AsyncIterator[Partner]:
    try:
        with until_loaded:
            async with application.asgi.lifespan():
                await _load(application, model)
                until_loaded.close()
                yield _InProcess(application.dispatcher, application.waking, model)
    except* StartupError as group:
        raise first_failure(group) from None


async def _load(application: Application, model: str) -> None:
    """If it is loaded on demand: that is now, however long it takes."""
    while application.waking.must_wait(model):
        try:
            await application.waking.wake(model)
        except Unavailable as error:
            if error.code != "loading":
                reasons = [worker.reason for worker in application.registry.serving(model) if worker.reason]
                raise StartupError(reasons[0] if reasons else str(error)) from error
