"""The backend ``hf``: Hugging Face transformers models, batched continuously.

Light on purpose: torch and transformers are imported when an engine is opened.
"""

from fastchat_backend_hf.options import HfOptions
from fastchat_serve import Capability, Engine, EngineSetup, RegisterEngine, hookimpl

__all__ = ["CAPABILITIES", "HfOptions", "open_hf", "register_engines"]

CAPABILITIES = frozenset(Capability) - {Capability.TOOL_CALLS}
"""Those of a decoder-only model whose chat template has tools."""


def open_hf(setup: EngineSetup) -> Engine:
    """An engine for `setup`, not loaded yet."""
    from fastchat_backend_hf.devices import empty_cache
    from fastchat_backend_hf.loading import load
    from fastchat_serve.stepping import SteppingEngine

    return SteppingEngine(setup, load, name="hf", leave=empty_cache)


@hookimpl
def register_engines(register: RegisterEngine) -> None:
    register("hf", open_hf, contract=1, options=HfOptions, capabilities=CAPABILITIES)
