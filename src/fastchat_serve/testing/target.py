"""What is under test: a backend, a model and options, found and checked as a server finds and checks them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial

from msgspec import Struct

from fastchat_serve.configfile.load import config_for_model, convert_options
from fastchat_serve.configfile.sources import ENVIRONMENT_PREFIX
from fastchat_serve.engine import Engine
from fastchat_serve.errors import ConfigError
from fastchat_serve.hookspecs import EngineSetup, Progress
from fastchat_serve.plugins import Backend, Plugins, installed, origin_of

__all__ = ["Target"]


class Target(Struct, frozen=True):
    """A backend with its options; `open` makes one engine of it after the other."""

    backend: Backend
    origin: str
    """The backend's distribution and version."""
    model: str
    options: Struct

    @classmethod
    def find(cls, backend: str, model: str, options: Iterable[str]) -> Target:
        """Load the plugin, and type its options: each is ``key=value`` as after ``--set``. Raises `StartupError`."""
        plugins = Plugins()
        found = plugins.backend(backend)
        # Options may quote variables such as ${HF_TOKEN}; those that configure a server are none of our business.
        environ = {name: text for name, text in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
        overrides = [f"worker.0.options.{option}" for option in options]
        try:
            config = config_for_model(model, backend=backend, overrides=overrides, environ=environ)
            typed = convert_options(config, 0, found.options)
        except ConfigError as error:
            raise ConfigError(f"--backend-option: {error.key or ''}: {error.problem}") from error
        named = plugins.model_for(found, config.worker[0].model)
        origin = origin_of(installed()[backend][0])
        return cls(found, origin, named, typed)

    def make(self, progress: Progress) -> Engine:
        """A fresh engine, not loaded yet. Raises `StartupError`."""
        return self.backend.factory(EngineSetup(self.model, self.options, progress))

    def maker(self, progress: Progress) -> partial[Engine]:
        return partial(self.make, progress)
