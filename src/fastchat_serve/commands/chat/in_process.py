"""A model in this process, with no HTTP: the request goes from the dispatcher to the worker."""

from __future__ import annotations

import argparse
import random
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from functools import partial

from fastchat_serve.app import Application
from fastchat_serve.commands.chat.partner import Partner, Settings
from fastchat_serve.commands.configured import config_from, first_failure, loading_progress
from fastchat_serve.controller.dispatcher import Dispatcher
from fastchat_serve.engine import ChatPrompt, Chunk, GenerateRequest, Message, SamplingParams
from fastchat_serve.errors import ConfigError, StartupError
from fastchat_serve.push import pull

__all__ = ["in_process"]


class _InProcess:
    """`model`, through the application's dispatcher."""

    def __init__(self, dispatcher: Dispatcher, model: str) -> None:
        self._dispatcher = dispatcher
        self.model, self.place = model, "in this process"

    def answer(self, messages: Sequence[Message], settings: Settings) -> AsyncGenerator[Chunk, None]:
        request = GenerateRequest(
            id=f"chat-{uuid.uuid4().hex}",
            prompt=ChatPrompt(tuple(messages)),
            sampling=SamplingParams(
                temperature=settings.temperature, max_tokens=settings.max_tokens, seed=random.getrandbits(64)
            ),
        )
        return pull(partial(self._dispatcher.start, self.model), request)


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
                until_loaded.close()
                yield _InProcess(application.dispatcher, model)
    except* StartupError as group:
        raise first_failure(group) from None
