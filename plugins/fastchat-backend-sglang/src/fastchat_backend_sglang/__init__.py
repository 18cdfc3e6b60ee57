"""The backend ``sglang``: models served by SGLang's engine.

Light on purpose: SGLang is imported when an engine is opened, and then in a process of its own.
"""

from fastchat_backend_sglang.capabilities import CAPABILITIES
from fastchat_backend_sglang.options import SglangOptions
from fastchat_serve import Engine, EngineSetup, RegisterEngine, hookimpl

__all__ = ["SglangOptions", "open_sglang", "register_engines"]


def open_sglang(setup: EngineSetup) -> Engine:
    """An engine for `setup`, not loaded yet."""
    from fastchat_backend_sglang.engine import SglangEngine

    return SglangEngine(setup)


@hookimpl
def register_engines(register: RegisterEngine) -> None:
    register("sglang", open_sglang, contract=1, options=SglangOptions, capabilities=CAPABILITIES)
