"""From ``[[worker]]`` to a worker: in this event loop, or in a process of its own; there at once, or on demand."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fastchat_serve.config import Config, Secret
from fastchat_serve.configfile.load import convert_options
from fastchat_serve.errors import PluginError
from fastchat_serve.hookspecs import EngineSetup, Progress
from fastchat_serve.plugins import Backend, Plugins
from fastchat_serve.worker.base import OwnWorker
from fastchat_serve.worker.loading import Loading
from fastchat_serve.worker.local import LocalWorker
from fastchat_serve.worker.on_demand import OnDemandWorker

if TYPE_CHECKING:
    from fastchat_serve.worker.process import ProcessWorker

__all__ = ["check_worker", "make_local_worker", "make_worker"]

_ENGINE_MEMBERS = ("__aenter__", "__aexit__", "current_load", "fatal_error", "generate_stream")
"""What the contract wants of every engine, whatever its capabilities; `info` may wait until it is open."""


def make_worker(config: Config, index: int, plugins: Plugins, progress: Progress) -> OwnWorker:
    """The worker of ``config.worker[index]``, not running yet. Raises `ConfigError`."""
    if not config.worker[index].on_demand:
        return _make_loaded(config, index, plugins, progress)
    check_worker(config, index, plugins)  # mistakes are not left to the first load
    loading = Loading(progress)
    return OnDemandWorker(config.worker[index], partial(_make_loaded, config, index, plugins, loading), loading)


def check_worker(config: Config, index: int, plugins: Plugins) -> None:
    """Raise `ConfigError` for what is wrong with ``config.worker[index]``, as far as that shows without an engine."""
    convert_options(config, index, _backend(config, index, plugins).options)


def _make_loaded(config: Config, index: int, plugins: Plugins, progress: Progress) -> LocalWorker | ProcessWorker:
    worker = config.worker[index]
    if worker.placement == "loop":
        return make_local_worker(config, index, plugins, progress)
    from fastchat_serve.worker.process import ProcessWorker  # most servers start without it, and sooner

    backend = _backend(config, index, plugins)
    options = msgspec.to_builtins(convert_options(config, index, backend.options), enc_hook=_spelled_out)
    return ProcessWorker(worker, options, progress, plugins=config.plugins, log_level=config.server.log_level)


def make_local_worker(
    config: Config, index: int, plugins: Plugins, progress: Progress, *, restarts: bool = True
) -> LocalWorker:
    """The same, in this event loop wherever the config would place it. `restarts`: a broken engine is made anew."""
    worker, backend = config.worker[index], _backend(config, index, plugins)
    options = convert_options(config, index, backend.options)
    loading = progress if isinstance(progress, Loading) else Loading(progress)
    setup = EngineSetup(plugins.model_for(backend, worker.model), options, loading)
    engine = backend.factory(setup)
    missing = [name for name in _ENGINE_MEMBERS if not hasattr(type(engine), name) and name not in vars(engine)]
    if missing:
        raise config.error(("worker", index, "backend"), f"the engine of {worker.backend!r} lacks {', '.join(missing)}")
    return LocalWorker(
        engine,
        names=worker.names,
        concurrency=worker.concurrency,
        queue=worker.queue,
        speed=worker.speed,
        timeouts=worker.timeouts,
        tool_parser=worker.tool_parser,
        remake=(lambda: backend.factory(setup)) if restarts else None,
        loading=loading,
    )


def _backend(config: Config, index: int, plugins: Plugins) -> Backend:
    worker = config.worker[index]
    try:
        backend = plugins.backend(worker.backend)
        plugins.model_for(backend, worker.model)
    except PluginError as error:
        raise config.error(("worker", index, "backend"), str(error)) from error
    if worker.tool_parser is not None and worker.tool_parser not in plugins.tool_parsers:
        known = ", ".join(sorted(plugins.tool_parsers))
        raise config.error(("worker", index, "tool_parser"), f"there is no such parser; known are: {known}")
    return backend


def _spelled_out(value: Any) -> str:
    """For the link to the child, which nobody else can read."""
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"an option of type {type(value).__name__} cannot be passed to another process")
