"""Load the plugins a config names, and no other; say what was loaded, from where.

A plugin is one entry point of the group `fastchat_serve`. Its name is what the config says:
``backend = "hf"`` loads the entry point ``hf``; ``model = "demo"`` loads ``demo`` if there is one.
Everything that can go wrong here is a `PluginError` at start-up that names the distribution and
the cause. What a plugin may offer is in `hookspecs.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, TypeVar

import pluggy
from msgspec import Struct

from fastchat_serve import hookspecs
from fastchat_serve.engine import CONTRACT, Capability
from fastchat_serve.errors import PluginError
from fastchat_serve.hookspecs import GROUP, EngineFactory, NoOptions, ToolParserFactory
from fastchat_serve.policy import Policy
from fastchat_serve.text.tools import TOOL_PARSERS

__all__ = ["ACCEPTED_CONTRACTS", "Backend", "PluginReport", "Plugins", "inspect", "installed", "origin_of"]

ACCEPTED_CONTRACTS = range(1, CONTRACT + 1)
"""The contract numbers that this server can drive."""

_T = TypeVar("_T")


class Backend(Struct, frozen=True):
    """An engine factory and what it was registered with."""

    name: str
    factory: EngineFactory
    options: type[Struct]
    contract: int
    capabilities: frozenset[Capability] = frozenset()
    upstream_model: bool = False
    """A worker's `model` is a name at an upstream, and no model of ours."""


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


def installed() -> dict[str, tuple[EntryPoint, ...]]:
    """All entry points of the group by name, none imported. Of two with one name, nobody can say which is meant."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in sorted(entry_points(group=GROUP), key=origin_of):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


class Plugins:
    """The plugins that were loaded, and what they offer by name.

    Args:
        available: What can be loaded; by default what is installed.
    """

    def __init__(self, available: Mapping[str, tuple[EntryPoint, ...]] | None = None) -> None:
        self._available = installed() if available is None else available
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self.backends: dict[str, Backend] = {}
        self.models: dict[str, Path] = {}
        self.policies: dict[str, Policy] = {}
        self.tool_parsers: dict[str, ToolParserFactory] = dict(TOOL_PARSERS)

    def load(self, names: Iterable[str]) -> None:
        """Import and register plugins by name; a name that is loaded already is passed over.

        Raises:
            PluginError: There is no such plugin, there are two, or it is broken.
        """
        for name in names:
            if self._manager.has_plugin(name):
                continue
            points = self._available.get(name, ())
            if not points:
                raise PluginError(f"No plugin is called {name!r}.{_nearest(name, self._available)}")
            if len(points) > 1:
                origins = " and ".join(map(origin_of, points))
                raise PluginError(f"Two plugins are called {name!r}: {origins}. Uninstall one of them.")
            try:
                self._register(points[0])
            except PluginError:
                if self._manager.has_plugin(name):
                    self._manager.unregister(name=name)
                raise

    def backend(self, name: str) -> Backend:
        """The backend that a config names, loaded if need be."""
        if name not in self.backends:
            self.load([name])
        if name not in self.backends:
            origin = origin_of(self._available[name][0])
            raise PluginError(f"Plugin {name!r} of {origin} offers no engine called {name!r}.")
        return self.backends[name]

    def model(self, name: str) -> Path | None:
        """The folder of a model that a plugin registered; None if `name` is not a plugin's."""
        self._load_owner(name)
        return self.models.get(name)

    def model_for(self, backend: Backend, name: str) -> str:
        """What the engine of `backend` is given for ``model = name``: the folder, if a plugin registered one."""
        folder = None if backend.upstream_model else self.model(name)
        return name if folder is None else str(folder)

    def policy(self, name: str) -> Policy | None:
        """A policy that a plugin registered; None if `name` is not a plugin's."""
        self._load_owner(name)
        return self.policies.get(name)

    def _load_owner(self, name: str) -> None:
        """Load the plugin that `name` belongs to, if there is one."""
        owner = name.partition("/")[0]
        if owner in self._available:
            self.load([owner])

    def _register(self, point: EntryPoint) -> None:
        origin = origin_of(point)
        plugin = _attempt(f"Plugin {point.name!r} of {origin} could not be loaded", point.load)
        _attempt(
            f"Plugin {point.name!r} of {origin} does not fit", lambda: self._manager.register(plugin, name=point.name)
        )
        self._check_hooks(plugin, origin)
        # One plugin at a time: the other hook callers must not hear of this registration again.
        others: Sequence[Any] = [p for p in self._manager.get_plugins() if p is not plugin]
        for hook, register in self._registers(point.name, origin).items():
            call = partial(self._manager.subset_hook_caller(hook, remove_plugins=others), register=register)
            _attempt(f"Hook {hook!r} of {origin} failed", call)

    def _registers(self, plugin: str, origin: str) -> dict[str, Callable[..., None]]:
        """What each hook is given."""

        def register_engine(
            name: str,
            factory: EngineFactory,
            *,
            contract: int,
            options: type[Struct] = NoOptions,
            capabilities: frozenset[Capability] = frozenset(),
            upstream_model: bool = False,
        ) -> None:
            if contract not in ACCEPTED_CONTRACTS:
                raise PluginError(
                    f"Engine {name!r} of {origin} was written for contract {contract}; "
                    f"this server speaks {ACCEPTED_CONTRACTS.start} to {CONTRACT}."
                )
            if not (isinstance(options, type) and issubclass(options, Struct)):
                raise PluginError(f"The options of engine {name!r} of {origin} are not a msgspec.Struct class.")
            if name in self.backends:
                raise PluginError(f"Engine {name!r} of {origin} is registered already, by another plugin.")
            self.backends[name] = Backend(name, factory, options, contract, capabilities, upstream_model)

        def check_name(kind: str, name: str) -> None:
            if name.partition("/")[0] != plugin:
                raise PluginError(f"{kind} {name!r} of {origin} must be called {plugin!r} or begin with '{plugin}/'.")

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

        return {
            "register_engines": register_engine,
            "register_models": register_model,
            "register_policies": register_policy,
            "register_tool_parsers": register_tool_parser,
        }

    def _check_hooks(self, plugin: object, origin: str) -> None:
        callers = self._manager.get_hookcallers(plugin) or ()
        known = {name for name in vars(self._manager.hook) if getattr(self._manager.hook, name).has_spec()}
        for caller in callers:
            if not caller.has_spec():
                raise PluginError(f"{origin} implements an unknown hook {caller.name!r}.{_nearest(caller.name, known)}")


def inspect() -> list[PluginReport]:
    """Try every installed plugin, each by itself, and report; a broken one harms no other."""
    return [_inspect(name, points, point) for name, points in sorted(installed().items()) for point in points]


def _inspect(name: str, points: tuple[EntryPoint, ...], point: EntryPoint) -> PluginReport:
    distribution, version = _distribution(point)
    plugins = Plugins({name: points})
    try:
        plugins.load([name])
    except PluginError as error:
        return PluginReport(name, distribution, version, "broken", problem=str(error))
    contract = max((backend.contract for backend in plugins.backends.values()), default=None)
    return PluginReport(name, distribution, version, "ok", tuple(plugins.backends), tuple(plugins.models), contract)


def _attempt(problem: str, action: Callable[[], _T]) -> _T:
    """What foreign code returns; whatever it raises becomes a `PluginError` that says whose it was."""
    try:
        return action()
    except PluginError:
        raise
    except (Exception, SystemExit) as error:  # a module that gives up by `sys.exit` must not end us without a word
        raise PluginError(f"{problem}: {type(error).__name__}: {error}") from error


def _distribution(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist is not None else (point.value, "")


def origin_of(point: EntryPoint) -> str:
    """The distribution and version that an entry point comes from."""
    return " ".join(part for part in _distribution(point) if part)


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known are: {', '.join(names) or 'none'}."
