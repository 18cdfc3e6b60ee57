"""Fixtures for all tests: a real server on a real socket, in the test's own event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings

from fastchat_serve.app import Application
from fastchat_serve.configfile.load import load_config
from fastchat_serve.connection import ConnectionLimits
from fastchat_serve.plugins import Plugins
from fastchat_serve.quiet import QuietProcess, is_quiet
from fastchat_serve.server import HttpServer, bind
from fastchat_serve.worker import restarts

# What one example takes says nothing where other processes have the cores, too.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")

Serving = Callable[..., AbstractAsyncContextManager[Any]]
"""Of an `HttpServer`, or of a `QuietProcess` where the config has nobody listen."""


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """A blocking call of ours on the event loop fails the test that made it."""
    with blockbuster_ctx("fastchat_serve"):
        yield


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Serving:
    """``async with serving(toml) as server:`` serves that config at ``server.url``, on a free port."""

    @asynccontextmanager
    async def serving(
        toml: str, plugins: Plugins | None = None, limits: ConnectionLimits | None = None, port: int = 0
    ) -> AsyncIterator[HttpServer | QuietProcess]:
        def build() -> HttpServer | QuietProcess:
            path = tmp_path_factory.mktemp("config") / "config.toml"
            path.write_text(toml)
            config = load_config(path, overrides=[f"server.port={port}"], environ={})
            application = Application(config, plugins)
            return (
                QuietProcess(application)
                if is_quiet(application)
                else HttpServer(application, bind(config.server), limits)
            )

        server = await anyio.to_thread.run_sync(build)
        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(60):
                await tasks.start(server.run)
            try:
                yield server
            finally:
                server.stop()

    return serving


@pytest.fixture
def no_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose engine breaks stays failed."""
    monkeypatch.setattr(restarts, "MOST", 0)


ECHO = """
[controller]
[api]
[[worker]]
backend = "echo"
names = ["echo"]
"""
"""The smallest config."""
