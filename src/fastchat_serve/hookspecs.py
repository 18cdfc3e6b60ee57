"""The extension points: what a plugin may offer, one typed function each.

A plugin is an importable module (or object) behind one entry point of the group `fastchat_serve`,
with functions marked ``@hookimpl``. `plugins.py` loads those that the config names, and no other.
Keep the module light: import the engine's library inside the factory, so that
``fastchat-serve --help`` stays instant.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pluggy
from msgspec import Struct

from fastchat_serve.engine import Capability, Engine
from fastchat_serve.policy import Policy
from fastchat_serve.text.tools import ToolParser

__all__ = [
    "GROUP",
    "EngineFactory",
    "EngineSetup",
    "NoOptions",
    "Progress",
    "RegisterEngine",
    "RegisterModel",
    "RegisterPolicy",
    "RegisterToolParser",
    "ToolParserFactory",
    "hookimpl",
    "hookspec",
]

GROUP = "fastchat_serve"
"""The entry-point group, and pluggy's project name."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Progress(Protocol):
    """How long work tells how far it is. May be called from any thread."""

    def __call__(self, stage: str, fraction: float | None = None) -> None:
        """`stage` in a few words; `fraction` from 0 to 1, None if unknown."""
        ...


class NoOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """For a backend that has nothing to set."""


class EngineSetup(Struct, frozen=True):
    """What a factory is given: everything the config says about one worker's engine."""

    model: str
    """A folder (absolute), or a hub id. For a backend registered with `upstream_model`, a name at its upstream."""
    options: Struct
    """An instance of the Struct the backend was registered with: the table ``[worker.options]``."""
    progress: Progress


EngineFactory = Callable[[EngineSetup], Engine]
"""Returns an engine that is not loaded yet: ``async with`` loads it. Raises `StartupError`."""


class RegisterEngine(Protocol):
    def __call__(
        self,
        name: str,
        factory: EngineFactory,
        *,
        contract: int,
        options: type[Struct] = NoOptions,
        capabilities: frozenset[Capability] = frozenset(),
        upstream_model: bool = False,
    ) -> None:
        """Offer `factory` as ``backend = name``.

        `contract` is the number of the contract the backend was written for (`engine.CONTRACT` of that
        time). `options` is a frozen Struct with ``forbid_unknown_fields=True``; its field docstrings and
        `msgspec.Meta` make the errors and the JSON Schema of ``[worker.options]``. `capabilities` are the most
        that its engines declare, whatever the model, for those who choose a backend; left out, nothing is promised.
        With `upstream_model`, ``model`` is what another server calls it, and is handed on as it is, also where a plugin
        here offers a model of that name.
        """


class RegisterPolicy(Protocol):
    def __call__(self, name: str, policy: Policy) -> None:
        """Offer `policy` as ``[controller] policy = name``."""


ToolParserFactory = Callable[[], ToolParser]
"""Makes the parser of one answer."""


class RegisterToolParser(Protocol):
    def __call__(self, name: str, factory: ToolParserFactory) -> None:
        """Offer `factory` as ``[[worker]] tool_parser = name``, and to engines that name it in their info."""


class RegisterModel(Protocol):
    def __call__(self, name: str, path: Path) -> None:
        """Offer the folder `path` as ``model = name``."""


@hookspec
def register_engines(register: RegisterEngine) -> None:
    """Offer engines by name: ``register("vllm", open_vllm, contract=1, options=VllmOptions)``.

    Called once, when the config names the plugin.
    """


@hookspec
def register_policies(register: RegisterPolicy) -> None:
    """Offer ways to choose a worker: ``register("nearest", nearest)`` for ``[controller] policy = "nearest"``.

    The name must be the plugin's, or begin with it and a slash.
    """


@hookspec
def register_tool_parsers(register: RegisterToolParser) -> None:
    """Offer parsers for the form in which models write tool calls: ``register("pythonic", PythonicParser)``.

    A parser must give the same merged message however its text is cut (`text.ToolParser`).
    """


@hookspec
def register_models(register: RegisterModel) -> None:
    """Offer models by name: ``register("demo", Path(__file__).parent / "weights")``.

    The name must be the plugin's, or begin with it and a slash (``demo/large``): that is how a config
    that says ``model = "demo/large"`` finds the plugin.
    """
