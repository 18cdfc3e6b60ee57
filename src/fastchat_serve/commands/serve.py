"""``fastchat-serve --config F``: serve until a signal."""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import ExitStack

import anyio

from fastchat_serve.app import Application
from fastchat_serve.commands.configured import config_from, first_failure, loading_progress
from fastchat_serve.config import Server
from fastchat_serve.errors import StartupError
from fastchat_serve.server import bind, serve

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Bind, load, serve."""
    config = config_from(args)
    _set_up_logging(config.server)
    with ExitStack() as until_ready:
        application = Application(config, progress=until_ready.enter_context(loading_progress()))
        bound = bind(config.server)
        options = {"use_uvloop": sys.platform != "win32"}
        try:
            anyio.run(serve, application, bound, until_ready.close, backend_options=options)
        except* StartupError as group:
            raise first_failure(group) from None
    return 0


def _set_up_logging(server: Server) -> None:
    logging.basicConfig(
        stream=sys.stderr, level=server.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    # uvicorn tells of every connection's small troubles at "info".
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLogger().level))
