"""The backend ``example``. Light: the engine is imported when it is made, not before."""

from typing import Annotated

from msgspec import Meta, Struct

from fastchat_serve import Capability, Engine, EngineSetup, RegisterEngine, hookimpl

CAPABILITIES = frozenset({Capability.GENERATE, Capability.TEXT_PROMPT, Capability.CHAT, Capability.TOKEN_IDS})


class ExampleOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[worker.options]``."""

    suffix: str = "!"
    """Put after the answer."""
    delay_ms: Annotated[float, Meta(ge=0)] = 0.0
    """Time between characters."""


def open_example(setup: EngineSetup) -> Engine:
    from example_backend.engine import ExampleEngine

    return ExampleEngine(setup)


@hookimpl
def register_engines(register: RegisterEngine) -> None:
    register("example", open_example, contract=1, options=ExampleOptions, capabilities=CAPABILITIES)
