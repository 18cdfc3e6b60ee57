"""Load the plugins a config names, and no other; say what was loaded, from where.

A plugin is one entry point of the group `fastchat_serve`. Its name is what the config says:
``backend = "hf"`` loads the entry point ``hf``; ``model = "demo"`` loads ``demo`` if there is one.
Everything that can go wrong here is a `PluginError` at start-up that names the distribution and
the cause. What a plugin may offer is in `hookspecs.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

import pluggy
from msgspec import Struct

from fastchat_serve import hookspecs
from fastchat_serve.engine import CONTRACT
from fastchat_serve.errors import PluginError
from fastchat_serve.hookspecs import GROUP, EngineFactory, NoOptions, ToolParserFactory
from fastchat_serve.policy import Policy
from fastchat_serve.text.tools import TOOL_PARSERS

__all__ = ["ACCEPTED_CONTRACTS", "Backend", "PluginReport", "Plugins", "inspect", "installed"]

ACCEPTED_CONTRACTS = range(1, CONTRACT + 1)
"""The contract numbers that this server can drive."""


class Backend(Struct, frozen=True):
    """An engine factory and what it was registered with."""

    name: str
    factory: EngineFactory
    options: type[Struct]
    contract: int


class PluginReport(Struct, frozen=True):
    """One installed entry point, for ``fastchat-serve plugins``."""

    name: str
    distribution: str
    version: str
    state: Literal["ok", "broken"]
    engines: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    contract: int | None = None
    problem: str = ""


def installed() -> dict[str, EntryPoint]:
    """All entry points of the group by name, none imported.

    Raises:
        PluginError: Two distributions offer the same name, so a config could not say which it means.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise PluginError(
                f"Two plugins are called {point.name!r}: {_origin(other)} and {_origin(point)}. Uninstall one of them."
            )
    return found


class Plugins:
    """The plugins that were loaded, and what they offer by name.

    Args:
        available: What can be loaded; by default what is installed.
    """

    def __init__(self, available: dict[str, EntryPoint] | None = None) -> None:
        self._available = installed() if available is None else available
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self.backends: dict[str, Backend] = {}
        self.models: dict[str, Path] = {}
        self.policies: dict[str, Policy] = {}
        self.tool_parsers: dict[str, ToolParserFactory] = dict(TOOL_PARSERS)

    def load(self, names: Iterable[str]) -> None:
        """Import and register plugins by name; a name that is loaded already is passed over."""
        for name in names:
            if self._manager.has_plugin(name):
                continue
            point = self._available.get(name)
            if point is None:
                raise PluginError(f"No plugin is called {name!r}.{_nearest(name, self._available)}")
            try:
                self._register(point)
            except PluginError:
                raise
            except Exception as error:  # foreign code: whatever it raised, the operator learns whose it was
                raise PluginError(
                    f"Plugin {name!r} of {_origin(point)} could not be loaded: {type(error).__name__}: {error}"
                ) from error

    def backend(self, name: str) -> Backend:
        """The backend that a config names, loaded if need be."""
        if name not in self.backends:
            self.load([name])
        if name not in self.backends:
            origin = _origin(self._available[name])
            raise PluginError(f"Plugin {name!r} of {origin} offers no engine called {name!r}.")
        return self.backends[name]

    def model(self, name: str) -> Path | None:
        """The folder of a model that a plugin registered; None if `name` is not a plugin's."""
        owner = name.partition("/")[0]
        if name not in self.models and owner in self._available and not self._manager.has_plugin(owner):
            self.load([owner])
        return self.models.get(name)

    def policy(self, name: str) -> Policy | None:
        """A policy that a plugin registered; None if `name` is not a plugin's."""
        owner = name.partition("/")[0]
        if name not in self.policies and owner in self._available and not self._manager.has_plugin(owner):
            self.load([owner])
        return self.policies.get(name)

    def _register(self, point: EntryPoint) -> None:
        origin = _origin(point)
        plugin = point.load()
        self._manager.register(plugin, name=point.name)
        self._check_hooks(plugin, origin)

        def register_engine(
            name: str, factory: EngineFactory, *, contract: int, options: type[Struct] = NoOptions
        ) -> None:
            if contract not in ACCEPTED_CONTRACTS:
                raise PluginError(
                    f"Engine {name!r} of {origin} was written for contract {contract}; "
                    f"this server speaks {ACCEPTED_CONTRACTS.start} to {CONTRACT}."
                )
            if name in self.backends:
                raise PluginError(f"Engine {name!r} of {origin} is registered already, by another plugin.")
            self.backends[name] = Backend(name, factory, options, contract)

        def check_name(kind: str, name: str) -> None:
            if name.partition("/")[0] != point.name:
                raise PluginError(
                    f"{kind} {name!r} of {origin} must be called {point.name!r} or begin with '{point.name}/'."
                )

        def register_model(name: str, path: Path) -> None:
            check_name("Model", name)
            self.models[name] = path

        def register_policy(name: str, policy: Policy) -> None:
            check_name("Policy", name)
            self.policies[name] = policy

        def register_tool_parser(name: str, factory: ToolParserFactory) -> None:
            if name in self.tool_parsers:
                raise PluginError(f"Tool parser {name!r} of {origin} exists already.")
            self.tool_parsers[name] = factory

        # One plugin at a time: the other hook callers must not hear of this registration again.
        others: Sequence[Any] = [p for p in self._manager.get_plugins() if p is not plugin]
        registers: dict[str, object] = {
            "register_engines": register_engine,
            "register_models": register_model,
            "register_policies": register_policy,
            "register_tool_parsers": register_tool_parser,
        }
        for hook, register in registers.items():
            self._manager.subset_hook_caller(hook, remove_plugins=others)(register=register)

    def _check_hooks(self, plugin: object, origin: str) -> None:
        known = {hook for hook in dir(self._manager.hook) if not hook.startswith("_")}
        for caller in self._manager.get_hookcallers(plugin) or ():
            if caller.name not in known or not caller.has_spec():
                raise PluginError(f"{origin} implements an unknown hook {caller.name!r}.{_nearest(caller.name, known)}")


def inspect() -> list[PluginReport]:
    """Try every installed plugin, each by itself, and report; a broken one harms no other."""
    reports = []
    available = installed()
    for name, point in sorted(available.items()):
        distribution, version = _distribution(point)
        plugins = Plugins({name: point})
        try:
            plugins.load([name])
        except PluginError as error:
            reports.append(PluginReport(name, distribution, version, "broken", problem=str(error)))
        else:
            contract = max((backend.contract for backend in plugins.backends.values()), default=None)
            engines, models = tuple(plugins.backends), tuple(plugins.models)
            reports.append(PluginReport(name, distribution, version, "ok", engines, models, contract))
    return reports


def _distribution(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist is not None else (point.value, "")


def _origin(point: EntryPoint) -> str:
    return " ".join(part for part in _distribution(point) if part)


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known are: {', '.join(names) or 'none'}."
