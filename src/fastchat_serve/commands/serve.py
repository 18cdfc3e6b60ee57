"""``fastchat-serve --config F``: serve until a signal."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import anyio

from fastchat_serve.app import Application
from fastchat_serve.commands.configured import config_from, first_failure, loading_progress
from fastchat_serve.config import Config
from fastchat_serve.descriptors import raise_limit
from fastchat_serve.errors import StartupError
from fastchat_serve.logs import logging_to
from fastchat_serve.quiet import QuietProcess, is_quiet
from fastchat_serve.server import HttpServer, bind, serve

if TYPE_CHECKING:
    from fastchat_serve.processes import Place

__all__ = ["run", "serve_config"]


def run(args: argparse.Namespace) -> int:
    """Bind, load, serve."""
    return serve_config(config_from(args))


def serve_config(config: Config) -> int:
    """Serve until a signal, in as many processes as the config wants. Raises `StartupError`."""
    if config.server.processes > 1:
        from fastchat_serve.processes import in_processes  # most servers start without it, and sooner

        return in_processes(config, _serve)
    return _serve(config)


def _serve(config: Config, place: Place | None = None) -> int:
    """One process's life. `place`: it is one of several."""
    siblings, index = (None, None) if place is None else (place.siblings, place.index)
    with logging_to(_standard_error(), config.server.log_level, index) as log, ExitStack() as until_ready:
        application = Application(config, progress=until_ready.enter_context(loading_progress()), siblings=siblings)
        application.metrics.lost_log_lines = lambda: log.lost
        raise_limit()
        server: HttpServer | QuietProcess
        if is_quiet(application):
            server = QuietProcess(application)
        elif place is None:
            server = HttpServer(application, bind(config.server))
        else:
            server = HttpServer(application, place.shared, own=place.own)
        options = {"use_uvloop": sys.platform != "win32"}
        try:
            anyio.run(serve, server, until_ready.close, backend_options=options)
        except* StartupError as group:
            raise first_failure(group) from None
    return 0


def _standard_error() -> int:
    """Its file descriptor; that of nothing if we were started without one."""
    return os.open(os.devnull, os.O_WRONLY) if sys.__stderr__ is None else sys.__stderr__.fileno()
