"""``fastchat-serve --config F``: serve until a signal."""

from __future__ import annotations

import argparse
import logging
import sys

import anyio

from fastchat_serve.app import Application
from fastchat_serve.commands.configured import config_from, loading_progress
from fastchat_serve.config import Server
from fastchat_serve.errors import StartupError
from fastchat_serve.server import bind, serve

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Bind, load, serve."""
    config = config_from(args)
    _set_up_logging(config.server)
    with loading_progress() as progress:
        application = Application(config, progress=progress)
        bound = bind(config.server)
        try:
            anyio.run(serve, application, bound, backend_options={"use_uvloop": sys.platform != "win32"})
        except* StartupError as group:
            raise _first(group) from None
    return 0


def _first(group: BaseExceptionGroup[StartupError]) -> StartupError:
    """The first of the failures of engines that were loading side by side; the others become its notes."""
    leaves: list[StartupError] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop()
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        elif isinstance(error, StartupError):
            leaves.append(error)
    for other in leaves[1:]:
        leaves[0].add_note(str(other))
    return leaves[0]


def _set_up_logging(server: Server) -> None:
    logging.basicConfig(
        stream=sys.stderr, level=server.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    # uvicorn tells of every connection's small troubles at "info".
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLogger().level))
