"""Engines that load when a test lets them: ``backend = "gated"``."""

from __future__ import annotations

import weakref
from typing import Self

import anyio

from fastchat_serve.engine import CONTRACT
from fastchat_serve.engines.echo import EchoEngine, EchoOptions
from fastchat_serve.hookspecs import EngineSetup
from fastchat_serve.plugins import Backend, Plugins

__all__ = ["Gate", "GatedEngine"]


class Gate:
    """Makes the engines, and holds them while they load.

    Attributes:
        loads: How many began to load.
        failure: What goes wrong with those that load; empty: nothing.
    """

    def __init__(self, *, is_open: bool = False) -> None:
        self.loads = 0
        self.failure = ""
        self._made: list[weakref.ref[GatedEngine]] = []
        self._go = anyio.Event()
        if is_open:
            self.open()

    def open(self) -> None:
        """Whoever loads is done, and so is who comes later."""
        self._go.set()

    def close(self) -> None:
        """Whoever comes waits again."""
        self._go = anyio.Event()

    @property
    def engines(self) -> list[GatedEngine]:
        """Those that are still in memory."""
        return [engine for made in self._made if (engine := made()) is not None]

    def make(self, setup: EngineSetup) -> GatedEngine:
        assert isinstance(setup.options, EchoOptions)
        engine = GatedEngine(self, setup)
        self._made.append(weakref.ref(engine))
        return engine

    async def passed(self) -> None:
        self.loads += 1
        await self._go.wait()
        if self.failure:
            raise OSError(self.failure)

    @property
    def plugins(self) -> Plugins:
        plugins = Plugins({})
        plugins.backends["gated"] = Backend("gated", self.make, EchoOptions, CONTRACT)
        return plugins


class GatedEngine(EchoEngine):
    """An echo that is loaded through a gate."""

    def __init__(self, gate: Gate, setup: EngineSetup) -> None:
        assert isinstance(setup.options, EchoOptions)
        super().__init__(setup.options)
        self._gate, self.progress = gate, setup.progress

    async def __aenter__(self) -> Self:
        await self._gate.passed()
        return await super().__aenter__()
