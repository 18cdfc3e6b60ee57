"""``fastchat-serve --config F``: serve until a signal."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack

import anyio

from fastchat_serve.app import Application
from fastchat_serve.commands.configured import config_from, first_failure, loading_progress
from fastchat_serve.descriptors import raise_limit
from fastchat_serve.errors import StartupError
from fastchat_serve.logs import logging_to
from fastchat_serve.quiet import QuietProcess, is_quiet
from fastchat_serve.server import HttpServer, bind, serve

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Bind, load, serve."""
    config = config_from(args)
    with logging_to(_standard_error(), config.server.log_level) as log, ExitStack() as until_ready:
        application = Application(config, progress=until_ready.enter_context(loading_progress()))
        application.metrics.lost_log_lines = lambda: log.lost
        raise_limit()
        server = QuietProcess(application) if is_quiet(application) else HttpServer(application, bind(config.server))
        options = {"use_uvloop": sys.platform != "win32"}
        try:
            anyio.run(serve, server, until_ready.close, backend_options=options)
        except* StartupError as group:
            raise first_failure(group) from None
    return 0


def _standard_error() -> int:
    """Its file descriptor; that of nothing if we were started without one."""
    return os.open(os.devnull, os.O_WRONLY) if sys.__stderr__ is None else sys.__stderr__.fileno()
