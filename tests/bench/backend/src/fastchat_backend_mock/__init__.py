"""The backend ``mock``: the engine is imported when it is opened, not before."""

from __future__ import annotations

from msgspec import Struct

from fastchat_serve import Engine, EngineSetup, RegisterEngine, hookimpl

__all__ = ["MockOptions", "register_engines"]

CONTRACT = 1
"""The contract that this engine was written for."""


class MockOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[worker.options]``."""

    whole: bool = False
    """Answer in one chunk of the knob `size`, as engines' servers do when nobody asked for a stream; an engine
    itself cannot know whether anybody did."""


@hookimpl
def register_engines(register: RegisterEngine) -> None:
    register("mock", _open, contract=CONTRACT, options=MockOptions)


def _open(setup: EngineSetup) -> Engine:
    from fastchat_backend_mock.engine import MockEngine

    assert isinstance(setup.options, MockOptions)
    return MockEngine(setup.options)
