"""``fastchat-serve chat``: talk to a model in the terminal, on a server or in this process.

::

    session.py            messages and commands
    ├── conversation.py   what was said; files
    ├── lines.py          input: a terminal with history, or a pipe
    ├── screen.py         output: rendered Markdown, or a pipe
    ├── interrupts.py     Ctrl-C
    └── streaming.py      one answer
        └── partner.py    who answers: over_http.py or in_process.py
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from anyio.from_thread import start_blocking_portal

from fastchat_serve.cli import DEFAULT_URL
from fastchat_serve.commands.chat.conversation import Conversation
from fastchat_serve.commands.chat.lines import piped_lines, typed_lines
from fastchat_serve.commands.chat.partner import Partner, Settings
from fastchat_serve.commands.chat.screen import Screen
from fastchat_serve.commands.chat.session import Session
from fastchat_serve.commands.chat.streaming import Reply, read_answer
from fastchat_serve.engine import Message
from fastchat_serve.errors import ConfigError, FastchatServeError, StartupError

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Chat with the model that the arguments name.

    Raises:
        StartupError: The arguments or the config make no sense, or the model could not be loaded.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text cannot be sent
    screen = Screen()
    settings = Settings(args.temperature, args.max_tokens)
    try:
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(_partner(args)) as partner:

            def ask(messages: Sequence[Message], show: Callable[[str], object]) -> Reply:
                return read_answer(portal, partner.answer(messages, settings), show)

            session = Session(partner.model, partner.place, ask, screen, Conversation(args.system))
            opened = typed_lines(session.words, styled=screen.styled) if screen.interactive else piped_lines()
            with opened as lines:
                return session.run(lines)
    except StartupError:
        raise
    except FastchatServeError as error:
        screen.error(str(error))
        return 1


def _partner(args: argparse.Namespace) -> AbstractAsyncContextManager[Partner]:
    """Who the arguments say it is; the imports are heavy and differ. Raises `StartupError`."""
    in_this_process = args.config is not None or (args.model is not None and args.url is None)
    if args.url is not None and (args.config is not None or args.overrides):
        raise ConfigError("--url is about a running server, --config and --set are about a model in this process.")
    if args.overrides and not in_this_process:
        raise ConfigError("--set needs --config or --model.")
    if not in_this_process:
        from fastchat_serve.commands.chat.over_http import over_http
        from fastchat_serve.commands.client import client_from

        return over_http(client_from(args, args.url or DEFAULT_URL), args.model)
    from fastchat_serve.commands.chat.in_process import in_process

    return in_process(args)
